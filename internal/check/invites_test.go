package check

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var north = v1alpha1.Joiner{TrustDomain: "north-1", Address: "198.18.3.1"}

// invitation is an Invite of some age.
func invitation(age time.Duration, status func(*v1alpha1.InviteStatus)) v1alpha1.Invite {
	inv := v1alpha1.Invite{
		ObjectMeta: metav1.ObjectMeta{Name: "north", CreationTimestamp: metav1.NewTime(noon.Add(-age))},
		Spec:       v1alpha1.InviteSpec{ValidSeconds: 900, Export: &v1alpha1.ExportRules{Services: v1alpha1.AllServices}},
	}
	if status != nil {
		status(&inv.Status)
	}
	return inv
}

// joins is a Join that began 5 minutes ago.
func joins(state, reason, message string) v1alpha1.Join {
	return v1alpha1.Join{
		ObjectMeta: metav1.ObjectMeta{Name: "north", CreationTimestamp: metav1.NewTime(noon.Add(-5 * time.Minute))},
		Status:     v1alpha1.JoinStatus{State: state, Reason: reason, Message: message},
	}
}

func TestInvites(t *testing.T) {
	named(t, map[string]fault{
		"invite soon over": {
			why:   "a token has to be carried",
			spoil: func(f *Facts) { f.Invites = []v1alpha1.Invite{invitation(13*time.Minute, nil)} },
			want:  []string{"warning invite north: open, and ends in 2 minutes: its Link will show the peer all that is exported, and mirror nothing of the peer's"},
		},
		"invite over": {
			why:   "somebody waits for it, or has forgotten it",
			spoil: func(f *Facts) { f.Invites = []v1alpha1.Invite{invitation(25*time.Minute, nil)} },
			want:  []string{"warning invite north: nobody has used it, and it ran out 10 minutes ago"},
		},
		"invite half used": {
			why: "a crash between two steps", spoil: func(f *Facts) {
				f.Invites = []v1alpha1.Invite{invitation(2*time.Minute, func(s *v1alpha1.InviteStatus) { s.State, s.Joined = v1alpha1.InviteJoining, &north })}
			},
			want: []string{"warning invite north: trust domain north-1, from 198.18.3.1, began to use it, and its Link does not stand yet"},
		},
		"invite raced": {
			why: "the loser may be the one that was meant", spoil: func(f *Facts) {
				f.Invites = []v1alpha1.Invite{invitation(2*time.Minute, func(s *v1alpha1.InviteStatus) {
					s.State, s.Joined = v1alpha1.InviteLinked, &north
					s.Refusals = []v1alpha1.InviteRefusal{{Joiner: v1alpha1.Joiner{TrustDomain: "thief-1", Address: "198.18.4.1"}, Reason: "Used"}}
				})}
			},
			want: []string{"warning invite north: a cluster of trust domain thief-1, from 198.18.4.1, was refused: Used"},
		},
		"join refused": {
			why: "its sentence was on a screen once", spoil: func(f *Facts) {
				f.Joins = []v1alpha1.Join{joins(v1alpha1.JoinRefused, "Used", "the token was used")}
			},
			want: []string{"warning invite north: joining was refused (Used): the token was used"},
		},
		"join slow": {
			why: "an inviter that is not reached", spoil: func(f *Facts) {
				f.Joins = []v1alpha1.Join{joins(v1alpha1.JoinPending, "", "asking the inviter at 198.18.3.10:4143: no answer")}
			},
			want: []string{"warning invite north: joining has lasted 5 minutes (asking the inviter at 198.18.3.10:4143: no answer)"},
		},
	})
}

// An invite that all is well with is told of, and is no warning.
func TestOpenInvite(t *testing.T) {
	f := healthy()
	f.Invites = []v1alpha1.Invite{invitation(3*time.Minute, nil)}
	want := Line{Check: checkInvite, On: "north", State: OK,
		Seen: "opened 3 minutes ago, good for 12 minutes more: its Link will show the peer all that is exported, and mirror nothing of the peer's"}
	if got := invites(*f); len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
