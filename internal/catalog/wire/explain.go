package wire

// Explain says in a sentence of a closed list why a Client's stream ended, for
// conditions: the same for the same cause, without a stranger's text.
func Explain(err error) string {
	switch reason(err) {
	case endedUnreachable:
		return "it does not answer: check the address, the firewalls on the way, and that the peer's gateway runs"
	case endedTurnedAway:
		return "the peer's gateway turns us away: it does not know this cluster, for which apply there what `causeway identity` prints here, or its controllers are away"
	case endedBroken:
		return "the connection broke and is made anew"
	case endedHandshake:
		return "it answers, but not as the peer: check that both Links hold what `causeway identity` prints in the other cluster, and both clocks"
	case endedSilent:
		return "the peer's controller fell silent"
	case endedSlow:
		return "the peer's controller takes nothing"
	case endedProtocol:
		return "the peer speaks another protocol: check its version"
	case endedLimit:
		return "the peer sends more than its quota"
	case endedNotLinked:
		return "the peer does not know this cluster: apply there what `causeway identity` prints here"
	case endedStreams, endedConnections:
		return "the peer's controller has too many streams"
	case endedOrderly:
		return "the peer's controller ended the stream in good order, as one does that stops; it is dialled again"
	case endedNotReady, endedStopping:
		return "the peer's controller is starting"
	}
	return "the stream ended for a reason that the controller's log tells"
}
