package mirror

import (
	"fmt"
	"maps"
	"slices"
)

// ManyServices warns of the namespaces that hold at least limit mirrors. counts are by
// namespace. The kubelet gives each container of a namespace environment variables for
// each Service in it, and a process with too many starts slowly, or not at all.
func ManyServices(counts map[string]int, limit int) []Problem {
	var out []Problem
	for _, namespace := range slices.Sorted(maps.Keys(counts)) {
		if counts[namespace] >= limit {
			out = append(out, Problem{
				Service: namespace + "/",
				Reason:  ManyServicesInNamespace,
				Message: fmt.Sprintf(
					"the namespace holds at least %d mirrors: set enableServiceLinks: false in its pods, "+
						"or spread the mirrors over namespaces", limit),
			})
		}
	}
	return out
}
