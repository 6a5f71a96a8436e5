package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	return must(hex.DecodeString(s))(t)
}

// TestLinkSecretGolden is the example of RFC 7748, section 6.1.
func TestLinkSecretGolden(t *testing.T) {
	alice := must(ParseLinkKey(unhex(t, "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")))(t)
	if got := hex.EncodeToString(alice.Public()); got != "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a" {
		t.Errorf("Public = %s", got)
	}
	secret := must(LinkSecret(alice, unhex(t, "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")))(t)
	if got := hex.EncodeToString(secret[:]); got != "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742" {
		t.Errorf("LinkSecret = %s", got)
	}
}

func TestDays(t *testing.T) {
	for in, want := range map[time.Time]uint32{
		time.Unix(0, 0):           0,
		time.Unix(86399, 0):       0,
		time.Unix(86400, 0):       1,
		time.Unix(-1, 0):          0,
		noon:                      20526,
		noon.Add(12 * time.Hour):  20527,
		noon.Add(-13 * time.Hour): 20525,
	} {
		if got := Day(in); got != want {
			t.Errorf("Day(%v) = %d, want %d", in, got, want)
		}
	}
}

func TestLinkSecretIsShared(t *testing.T) {
	west, east := must(NewLinkKey())(t), must(NewLinkKey())(t)
	a := must(LinkSecret(west, east.Public()))(t)
	b := must(LinkSecret(east, west.Public()))(t)
	if a != b {
		t.Error("two linked clusters derive different secrets")
	}
	again := must(ParseLinkKey(west.Bytes()))(t)
	if !bytes.Equal(again.Public(), west.Public()) {
		t.Error("a key read back is another")
	}
}

func TestLinkSecretRefuses(t *testing.T) {
	own := must(NewLinkKey())(t)
	one := make([]byte, 32)
	one[0] = 1
	otherSpelling := own.Public()
	otherSpelling[31] |= 0x80 // X25519 ignores the last bit
	cases := map[string]struct {
		why  string
		peer []byte
	}{
		"own key respelt": {"the same point in other bytes", otherSpelling},
		"own key":         {"two clusters with one key: a peer could replay our labels to us", own.Public()},
		"zero":            {"a point of low order: everybody knows the secret", make([]byte, 32)},
		"one":             {"a point of low order: everybody knows the secret", one},
		"short":           {"no key", one[:31]},
		"long":            {"no key", append(one[:32:32], 0)},
		"missing":         {"an empty field of a Link", nil},
		"minus one":       {"a point of low order: everybody knows the secret", unhex(t, "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")},
		"order eight":     {"a point of low order: everybody knows the secret", unhex(t, "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")},
		"order eight'":    {"a point of low order: everybody knows the secret", unhex(t, "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157")},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if secret, err := LinkSecret(own, c.peer); !errors.Is(err, ErrLinkKey) || secret != [32]byte{} {
				t.Errorf("LinkSecret = %x, %v; want ErrLinkKey: %s", secret, err, c.why)
			}
		})
	}
	if _, err := LinkSecret(LinkKey{}, own.Public()); !errors.Is(err, ErrLinkKey) {
		t.Errorf("no own key: %v", err)
	}
	if _, err := ParseLinkKey(one[:31]); !errors.Is(err, ErrLinkKey) {
		t.Errorf("a short Secret: %v", err)
	}
}

// TestLinkGolden holds derivations still: peers of other versions compute them too.
func TestLinkGolden(t *testing.T) {
	var secret, master [32]byte
	for i := range secret {
		secret[i], master[i] = byte(i), byte(255-i)
	}
	endpoint := EndpointKey(master)
	id := EndpointID(endpoint, "shop/bar", "0b4b7c1e-1111-2222-3333-444444444444")
	for name, v := range map[string]struct {
		got  []byte
		want string
	}{
		"day key":            {sliceOf(DayKey(secret, "west-1a2b3c4d", "east-5e6f7a8b", 20526)), "2ff1fb9428c534d704bab26355f3bdfd731fd7c1714d369f57c226463c801443"},
		"day key, next day":  {sliceOf(DayKey(secret, "west-1a2b3c4d", "east-5e6f7a8b", 20527)), "c56d9f51c79805faf2b63da41c342946b581f4dc524476aae583d5b4293b5aca"},
		"day key, other way": {sliceOf(DayKey(secret, "east-5e6f7a8b", "west-1a2b3c4d", 20526)), "5dd40746c51fd5adcfa9fecfc7f88821fd88978f17b91a0b35b38b38e85c6231"},
		"hop key":            {sliceOf(HopKey(master, "west-node-1")), "d3598f295e4f16f3432055a33508a7a8fb3844157fd669f7555d4ab18226bf1a"},
		"endpoint key":       {endpoint[:], "c11c86112bbe930472b1c9f65996b558d5846dec22abf0253d3b92952a7b9c2d"},
		"endpoint id":        {id[:], "2fb5b56ce7f1fcb0"},
	} {
		if got := hex.EncodeToString(v.got); got != v.want {
			t.Errorf("%s = %s, want %s", name, got, v.want)
		}
	}
}

func sliceOf(b [32]byte) []byte { return b[:] }

// Fields that could flow into each other would let one link's key be another's.
func TestDerivationsDoNotCollide(t *testing.T) {
	var k [32]byte
	if DayKey(k, "ab", "c", 1) == DayKey(k, "a", "bc", 1) {
		t.Error("trust domains flow into each other")
	}
	if EndpointID(k, "ab", "c") == EndpointID(k, "a", "bc") {
		t.Error("service and pod flow into each other")
	}
	if HopKey(k, "") == EndpointKey(k) {
		t.Error("hop key and endpoint key are one")
	}
}
