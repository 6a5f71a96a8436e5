package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
)

// roots are of the clusters in stories about invites. They are made once: keys cost time.
var roots = sync.OnceValue(func() map[string]*x509.Certificate {
	out := make(map[string]*x509.Certificate)
	for _, domain := range []string{"west-0a1b2c3d", "east-4d5e6f70", "south-99999999"} {
		root, err := identity.NewRoot(domain, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
		if err != nil {
			panic(err)
		}
		out[strings.SplitN(domain, "-", 2)[0]] = root.Certificate()
	}
	return out
})

func rootOf(name string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: roots()[name].Raw}))
}

// tokenFor is what a story types where it says a token's word.
func tokenFor(word string) string {
	token := invite.Token{
		Root: identity.RootHash(roots()["east"]), Secret: invite.NewSecret(), Expires: time.Now().Add(invite.Lifetime),
		Peer: "west", Inviter: "east", Gateways: []string{"198.18.2.10:4143"},
	}
	switch word {
	case "OTHERS":
		token.Peer = "north"
	case "OWN":
		token.Root = identity.RootHash(roots()["west"])
	case "OLD":
		token.Expires = time.Now().Add(-time.Hour)
	case "TOKEN":
	default:
		return word
	}
	text, err := token.Text()
	if err != nil {
		panic(err)
	}
	return text
}

func invitingMap(edit map[string]string) *corev1.ConfigMap {
	m := identityMap(edit)
	m.Data["root.pem"] = rootOf("west")
	return m
}

// looking behaves as if a controller looked at Invites and Joins at each look, and at Links. joined is a Join's state,
// with /REASON if it has one.
func looking(invited, joined string, message string) interceptor.Funcs {
	f := linking(1)
	links := f.Get
	f.Get = func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
		err := links(ctx, c, key, o, opts...)
		switch o := o.(type) {
		case *v1alpha1.Invite:
			o.Status.State = invited
		case *v1alpha1.Join:
			state, reason, _ := strings.Cut(joined, "/")
			o.Status = v1alpha1.JoinStatus{State: state, Reason: reason, Message: message}
		}
		return err
	}
	f.Create = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		o.SetCreationTimestamp(metav1.Now())
		return c.Create(ctx, o, opts...)
	}
	f.List = func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		err := c.List(ctx, list, opts...)
		if l, ok := list.(*v1alpha1.InviteList); ok {
			for i := range l.Items {
				l.Items[i].Status = v1alpha1.InviteStatus{
					State:    v1alpha1.InviteLinked,
					Joined:   &v1alpha1.Joiner{TrustDomain: "east-4d5e6f70", RootHash: strings.Repeat("ab", 32), Address: "198.18.2.1"},
					Refusals: []v1alpha1.InviteRefusal{{Joiner: v1alpha1.Joiner{TrustDomain: "south-99999999", RootHash: strings.Repeat("cd", 32), Address: "198.18.3.1"}, Reason: "Used"}},
				}
			}
		}
		return err
	}
	return f
}

// inviteClusters are those that stories of invites and joins choose from.
var inviteClusters = map[string]func() cluster{
	"west-inviting": func() cluster {
		return made("v1.36.3", looking(v1alpha1.InviteOpen, "", ""), invitingMap(nil), linkTo("north", "north-11111111"), &v1alpha1.Invite{
			ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "south", UID: "uid-of-south", CreationTimestamp: metav1.NewTime(time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC))},
			Spec:       v1alpha1.InviteSpec{ValidSeconds: 900},
		})
	},
	"west-inviting-dark": func() cluster {
		return made("v1.36.3", looking(v1alpha1.InviteOpen, "", ""), invitingMap(map[string]string{"gateways": ""}))
	},
	"west-inviting-deaf": func() cluster { return made("v1.36.3", looking("", "", ""), invitingMap(nil)) },
	"west-joining": func() cluster {
		return made("v1.36.3", joiningLink(looking("", v1alpha1.JoinLinked, "Link east stands")), invitingMap(nil), linkTo("taken", "south-99999999"))
	},
	"west-joining-deaf": func() cluster {
		return made("v1.36.3", looking("", v1alpha1.JoinPending, "asking the inviter at 198.18.2.10:4143: it cannot be reached"), invitingMap(nil))
	},
	"west-refused": func() cluster {
		return made("v1.36.3", looking("", v1alpha1.JoinRefused+"/Used", "the token was used by another cluster already: ask for a new one"), invitingMap(nil))
	},
	"west-overtaken": func() cluster {
		return made("v1.36.3", looking("", v1alpha1.JoinRefused+"/NameTaken", "Link east is for another cluster, of trust domain south-99999999: choose another name for the inviter"), invitingMap(nil))
	},
}

// joiningLink makes the Link when its Join is made, as a controller does.
func joiningLink(f interceptor.Funcs) interceptor.Funcs {
	create := f.Create
	f.Create = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if j, ok := o.(*v1alpha1.Join); ok {
			l := linkTo(j.Name, "east-4d5e6f70")
			l.Spec.Export, l.Spec.Import = j.Spec.Export, j.Spec.Import
			if err := c.Create(ctx, l); err != nil {
				return err
			}
		}
		return create(ctx, c, o, opts...)
	}
	return f
}

// slowly is a person who takes a while to paste.
type slowly struct {
	io.Reader
	after time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	<-time.After(s.after)
	s.after = 0
	return s.Reader.Read(p)
}

// --timeout is for the clusters, not for the person.
func TestJoinWaitsForWhoPastes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := joiningLink(looking("", v1alpha1.JoinLinked, "Link east stands"))
		f.List = func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if ctx.Err() != nil { // as a real client would see
				return context.Cause(ctx)
			}
			return c.List(ctx, list, opts...)
		}
		var errs strings.Builder
		a := &app{
			stdin: &slowly{strings.NewReader(tokenFor("TOKEN")), 10 * time.Minute}, terminal: true, stdout: io.Discard, stderr: &errs,
			connect: func(clusterFlags, io.Writer) (cluster, error) { return made("v1.36.3", f, invitingMap(nil)), nil },
		}
		if code := run(t.Context(), []string{"join", "east"}, a); code != 0 {
			t.Errorf("exit code %d: %s", code, &errs)
		}
	})
}

// Ctrl-C ends the command while it waits for the token.
func TestJoinEndsWhileNobodyPastes(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	in, out := io.Pipe()
	defer out.Close()
	a := &app{stdin: in, terminal: true, stdout: io.Discard, stderr: writer(func(p []byte) (int, error) {
		if strings.HasPrefix(string(p), "Paste") {
			interrupt()
		}
		return len(p), nil
	})}
	ended := make(chan int)
	go func() { ended <- run(ctx, []string{"join", "east"}, a) }()
	select {
	case code := <-ended:
		if code != 1 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for the token for ever")
		out.Close()
		<-ended
	}
}

// beside is the Secret of an Invite of that UID.
func beside(uid string) *corev1.Secret {
	inv := &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "east", UID: types.UID(uid)}}
	return secretOf(inv, "Invite", invite.SecretName("east"), invite.SecretKey, []byte(uid))
}

// A Secret beside an Invite is made with it and goes with it; what is not its own stays, and nothing half made is left.
func TestSecretOfInvite(t *testing.T) {
	theirs := beside("x")
	theirs.OwnerReferences = nil
	for name, c := range map[string]struct {
		why    string
		have   []client.Object
		refuse bool // the API server takes no Secret
		fails  bool
		left   string // whose Secret stands afterwards, "new" if it is the new Invite's
	}{
		"nothing there":           {why: "it must work at all", left: "new"},
		"an earlier Invite's":     {why: "Kubernetes collects it a while after its Invite, and that must not stop anybody", have: []client.Object{beside("earlier")}, left: "new"},
		"a person's":              {why: "what Causeway did not make is not deleted", have: []client.Object{theirs}, fails: true, left: "x"},
		"Secrets may not be made": {why: "an Invite without a secret is of no use and would be in the way", refuse: true, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			cl := made("v1.36.3", interceptor.Funcs{Create: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if _, secret := o.(*corev1.Secret); secret && c.refuse {
					return errors.New("no")
				}
				if o.GetUID() == "" {
					o.SetUID("new")
				}
				return w.Create(ctx, o, opts...)
			}}, c.have...)
			inv := &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "east"}}
			secret := invite.NewSecret()
			err := makeInvite(t.Context(), cl, inv, secret)
			var now v1alpha1.Invite
			stands := cl.Get(t.Context(), client.ObjectKeyFromObject(inv), &now) == nil
			if (err != nil) != c.fails || stands == c.fails {
				t.Errorf("%s: %v, and the Invite stands: %v", c.why, err, stands)
			}
			var s corev1.Secret
			left := ""
			if cl.Get(t.Context(), client.ObjectKey{Namespace: "causeway-system", Name: invite.SecretName("east")}, &s) == nil {
				if left = string(s.Data[invite.SecretKey]); left == string(secret.Bytes()) {
					left = "new"
				}
			}
			if left != c.left {
				t.Errorf("%s: the Secret of %q is left, want %q", c.why, left, c.left)
			}
		})
	}
}

// Of two who make and unmake an Invite at the same time neither takes the other's Secret away.
func TestDeleteLeavesOthersSecret(t *testing.T) {
	old := &v1alpha1.Invite{ObjectMeta: metav1.ObjectMeta{Namespace: "causeway-system", Name: "east", UID: "old"}}
	for uid, want := range map[string]bool{"old": false, "newer": true} {
		cl := made("v1.36.3", interceptor.Funcs{}, old.DeepCopy(), beside(uid))
		if err := deleteWithSecret(t.Context(), cl, old, invite.SecretName("east")); err != nil {
			t.Fatal(err)
		}
		err := cl.Get(t.Context(), client.ObjectKey{Namespace: "causeway-system", Name: invite.SecretName("east")}, &corev1.Secret{})
		if stands := err == nil; stands != want {
			t.Errorf("the Secret of Invite %s stands: %v, want %v", uid, stands, want)
		}
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// What was printed is what the controllers will hold the joiner to, and the joiner's Secret holds what was typed.
func TestTokenAndSecretAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		west := prepared(t, "west-inviting")
		var out strings.Builder
		var errs strings.Builder
		a := &app{stdout: &out, stderr: &errs, connect: func(clusterFlags, io.Writer) (cluster, error) { return west, nil }}
		if code := run(t.Context(), []string{"invite", "east"}, a); code != 0 {
			t.Fatalf("exit code %d: %s", code, &errs)
		}
		token, err := invite.ParseToken(out.String())
		if err != nil {
			t.Fatal(err)
		}
		var inv v1alpha1.Invite
		var s corev1.Secret
		for name, o := range map[string]client.Object{"east": &inv, invite.SecretName("east"): &s} {
			if err := west.Get(t.Context(), client.ObjectKey{Namespace: "causeway-system", Name: name}, o); err != nil {
				t.Fatal(err)
			}
		}
		if string(s.Data[invite.SecretKey]) != string(token.Secret.Bytes()) {
			t.Error("the Secret is not the token's")
		}
		if len(s.OwnerReferences) != 1 || s.OwnerReferences[0].UID != inv.UID || s.OwnerReferences[0].Kind != "Invite" {
			t.Errorf("Kubernetes would not collect the Secret: %v", s.OwnerReferences)
		}
		if !token.Expires.Equal(invite.Expires(&inv)) || token.Peer != "east" || token.Inviter != "west" || token.Root != identity.RootHash(roots()["west"]) {
			t.Errorf("the token does not say what the Invite does: %+v", inv)
		}
		if strings.Contains(errs.String(), out.String()[20:60]) {
			t.Error("the token is on stderr, too")
		}
	})
}
