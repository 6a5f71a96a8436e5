package check

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var north = v1alpha1.Joiner{TrustDomain: "north-1", Address: "198.18.3.1"}

// invitation returns an Invite of some age.
func invitation(age time.Duration, status func(*v1alpha1.InviteStatus)) v1alpha1.Invite {
	inv := v1alpha1.Invite{
		ObjectMeta: metav1.ObjectMeta{Name: "north", CreationTimestamp: metav1.NewTime(noon.Add(-age))},
		Spec: v1alpha1.InviteSpec{
			ValidSeconds: 900,
			Export:       &v1alpha1.ExportRules{Services: v1alpha1.AllServices},
		},
	}
	if status != nil {
		status(&inv.Status)
	}
	return inv
}

// joins returns a Join that began 5 minutes ago.
func joins(state, reason, message string) v1alpha1.Join {
	return v1alpha1.Join{
		ObjectMeta: metav1.ObjectMeta{
			Name:              "north",
			CreationTimestamp: metav1.NewTime(noon.Add(-5 * time.Minute)),
		},
		Status: v1alpha1.JoinStatus{State: state, Reason: reason, Message: message},
	}
}

func TestInvites(t *testing.T) {
	testFaults(t, map[string]fault{
		"invite expires soon": {
			why:   "an administrator has to carry the token",
			spoil: func(f *Facts) { f.Invites = []v1alpha1.Invite{invitation(13*time.Minute, nil)} },
			want: []string{
				"warning invite north: open, and expires in 2 minutes: its Link will show all exported " +
					"Services to the peer and mirror none of the peer's",
			},
		},
		"invite expired": {
			why:   "its creator may wait for it, or have forgotten it",
			spoil: func(f *Facts) { f.Invites = []v1alpha1.Invite{invitation(25*time.Minute, nil)} },
			want:  []string{"warning invite north: it expired 10 minutes ago without being used"},
		},
		"invite half used": {
			why: "a crash between two steps", spoil: func(f *Facts) {
				f.Invites = []v1alpha1.Invite{
					invitation(2*time.Minute,
						func(s *v1alpha1.InviteStatus) {
							s.State, s.Joined = v1alpha1.InviteJoining, &north
						}),
				}
			},
			want: []string{
				"warning invite north: trust domain north-1 began to join from 198.18.3.1, and its Link " +
					"does not exist yet",
			},
		},
		"invite raced": {
			why: "the cluster that lost the race may be the invited one", spoil: func(f *Facts) {
				f.Invites = []v1alpha1.Invite{invitation(2*time.Minute, func(s *v1alpha1.InviteStatus) {
					s.State, s.Joined = v1alpha1.InviteLinked, &north
					s.Refusals = []v1alpha1.InviteRefusal{
						{
							Joiner: v1alpha1.Joiner{TrustDomain: "thief-1", Address: "198.18.4.1"},
							Reason: "Used",
						},
					}
				})}
			},
			want: []string{
				"warning invite north: a cluster of trust domain thief-1 was refused, at 198.18.4.1: Used",
			},
		},
		"join refused": {
			why: "the message was on a terminal once", spoil: func(f *Facts) {
				f.Joins = []v1alpha1.Join{joins(v1alpha1.JoinRefused, "Used", "the token was used")}
			},
			want: []string{"warning invite north: the join was refused (Used): the token was used"},
		},
		"join slow": {
			why: "the inviter may not be reachable", spoil: func(f *Facts) {
				f.Joins = []v1alpha1.Join{
					joins(v1alpha1.JoinPending, "", "asking the inviter at 198.18.3.10:4143: no answer"),
				}
			},
			want: []string{
				"warning invite north: the join has lasted 5 minutes (asking the inviter at " +
					"198.18.3.10:4143: no answer)",
			},
		},
	})
}

// An open invite gives a result that is ok.
func TestOpenInvite(t *testing.T) {
	f := healthy()
	f.Invites = []v1alpha1.Invite{invitation(3*time.Minute, nil)}
	want := Result{
		Check:  checkInvite,
		Target: "north",
		State:  OK,
		Message: "opened 3 minutes ago, expires in 12 minutes: " +
			"its Link will show all exported Services to the peer and mirror none of the peer's",
	}
	if got := invites(*f); len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
