package message

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func sample() *Head {
	return &Head{
		Version: HTTP11,
		Method:  "GET",
		Target:  "/",
		Fields:  []Field{{"Host", "a"}, {"x-a", "1"}, {"X-B", "2"}, {"X-A", "3, Four ,\tfive"}},
	}
}

func TestFieldLookup(t *testing.T) {
	h := sample()
	if v, ok := h.Get("X-a"); v != "1" || !ok {
		t.Errorf("Get: got %q, %v", v, ok)
	}
	if v, ok := h.Get("X-C"); v != "" || ok {
		t.Errorf("Get of nothing: got %q, %v", v, ok)
	}
	if !h.Has("hOST") || h.Has("Hos") || h.Has("Hosts") {
		t.Error("Has")
	}
	if diff := cmp.Diff([]string{"1", "3, Four ,\tfive"}, h.Values("X-A")); diff != "" {
		t.Errorf("Values (-want +got):\n%s", diff)
	}
	if h.Values("X-C") != nil {
		t.Error("Values of nothing is not nil")
	}
	for token, want := range map[string]bool{
		"1": true, "3": true, "four": true, "FIVE": true, "fou": false, "3, Four": false,
	} {
		if got := h.HasToken("x-A", token); got != want {
			t.Errorf("HasToken %q: got %v", token, got)
		}
	}
}

func TestFieldChanges(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(h *Head)
		want   []Field
	}{
		"set the first and remove later ones": {
			change: func(h *Head) { h.Set("X-A", "9") },
			want:   []Field{{"Host", "a"}, {"x-a", "9"}, {"X-B", "2"}},
		},
		"set a new one": {
			change: func(h *Head) { h.Set("X-C", "9") },
			want: []Field{
				{"Host", "a"},
				{"x-a", "1"},
				{"X-B", "2"},
				{"X-A", "3, Four ,\tfive"},
				{"X-C", "9"},
			},
		},
		"add": {
			change: func(h *Head) { h.Add("host", "b") },
			want: []Field{
				{"Host", "a"},
				{"x-a", "1"},
				{"X-B", "2"},
				{"X-A", "3, Four ,\tfive"},
				{"host", "b"},
			},
		},
		"delete all of a name": {
			change: func(h *Head) { h.Del("x-A") },
			want:   []Field{{"Host", "a"}, {"X-B", "2"}},
		},
		"delete nothing": {
			change: func(h *Head) { h.Del("X-C") },
			want:   sample().Fields,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := sample()
			tc.change(h)
			if diff := cmp.Diff(tc.want, h.Fields); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestResetKeepsCapacityAndDropsStrings(t *testing.T) {
	h := sample()
	before := h.Fields
	h.Reset()
	if diff := cmp.Diff(&Head{}, h, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if cap(h.Fields) != cap(before) {
		t.Errorf("the capacity is %d, was %d", cap(h.Fields), cap(before))
	}
	for _, f := range before {
		if f != (Field{}) {
			t.Errorf("%v is still there", f)
		}
	}
}

func TestIsRequest(t *testing.T) {
	if !sample().IsRequest() || (&Head{Status: 200}).IsRequest() {
		t.Error("IsRequest")
	}
}

func TestVersionString(t *testing.T) {
	for v, want := range map[Version]string{
		0:      "unknown",
		HTTP10: "HTTP/1.0",
		HTTP11: "HTTP/1.1",
		HTTP2:  "HTTP/2",
	} {
		if got := v.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
