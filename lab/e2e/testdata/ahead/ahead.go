package main

import (
	"os"
	"strconv"
	_ "unsafe" // for go:linkname
)

// This file and ahead_amd64.s are no part of the product. `make ahead` lays them over cmd/causeway, by overlay.json, and so
// makes a causeway whose wall clock is ten minutes ahead of the machine's: every part of it, the libraries' too, and nothing
// but the wall clock, as on a node that has the wrong time. It is done where the Go runtime asks the kernel. The environment
// variable CAUSEWAY_TEST_CLOCK sets another number of seconds.

// offset is how many seconds the clock is ahead.
var offset int64 = 600

// clockGettime is the kernel's function that the runtime calls. The runtime lets others link to it.
//
//go:linkname clockGettime runtime.vdsoClockgettimeSym
var clockGettime uintptr

// kernels is what clockGettime was.
var kernels uintptr

// ahead returns the address of a function that asks kernels and adds offset.
func ahead() uintptr

func init() {
	if clockGettime == 0 {
		panic("the kernel offers no clock that could be wrong")
	}
	if s := os.Getenv("CAUSEWAY_TEST_CLOCK"); s != "" {
		var err error
		if offset, err = strconv.ParseInt(s, 10, 64); err != nil {
			panic(err)
		}
	}
	kernels = clockGettime
	clockGettime = ahead()
}
