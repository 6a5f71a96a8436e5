package charts

import "embed"

// files is the chart as it lies in this folder, named helpers included.
//
//go:embed all:causeway
var files embed.FS
