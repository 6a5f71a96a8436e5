package main

import (
	"maps"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestCountShares(t *testing.T) {
	files := map[uint64]string{
		1: "github.com/causeway-mesh/causeway/internal/dataplane/mux/conn.go",
		2: "crypto/internal/fips140/aes/gcm/gcm_amd64.s",
		3: "runtime/proc.go",
		4: "internal/poll/fd_unix.go",
		5: "syscall/asm_linux_amd64.s",
		6: "sync/mutex.go",
		7: "type:.eq.github.com/causeway-mesh/causeway/internal/dataplane/route.EndpointID",
	}
	script := `
	1 [unknown]
	4 [unknown]

	2 [unknown]

	3 [unknown]

	4 [unknown]

	6 [unknown]
	1 [unknown]

	7 [unknown]

	ffffffff81000001 memcpy
	ffffffff81000002 sock_sendmsg
	5 [unknown]

	ffffffff81000003 nft_do_chain
	ffffffff81000004 __do_softirq
	ffffffff81000002 sock_sendmsg
	5 [unknown]

	ffffffff81000005 finish_task_switch.isra.0
	ffffffff81000006 __x64_sys_futex
	3 [unknown]`
	got, err := countShares(strings.NewReader(script), func(place uint64) string { return files[place] })
	want := map[string]int{shareCauseway: 2, shareTLS: 1, shareRuntime: 1, shareLibrary: 2, shareSockets: 1, sharePackets: 1, shareWaits: 1}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "no address"} {
		if _, err := countShares(strings.NewReader(bad), nil); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// The test's own program has lines, too.
func TestReadLines(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	source, err := readLines(program)
	if err != nil {
		t.Fatal(err)
	}
	const firstOfProgram = 0x400000 // where the linker puts it
	entry := reflect.ValueOf(TestReadLines).Pointer()
	want, _ := runtime.FuncForPC(entry).FileLine(entry)
	if got := source(uint64(entry) - firstOfProgram); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := source(1); got != "" {
		t.Errorf("the first byte of the file is %q", got)
	}
}

func TestProfileTable(t *testing.T) {
	r := report{windows: []window{
		{Measure: "kept", Profile: map[string]int{shareTLS: 1, shareCauseway: 1}},
		{Measure: "kept", Profile: map[string]int{shareCauseway: 2}},
		{Measure: "http1"},
	}}
	got := r.profile()
	for _, want := range []string{"| | kept |\n", "| " + shareTLS + " | 25 % |\n", "| " + shareCauseway + " | 75 % |\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if got := (report{}).profile(); got != "" {
		t.Errorf("without profiles: %q", got)
	}
}
