package wire

// Explain returns a sentence from a closed list that says why a Client's stream ended,
// and what to do. It is the same for the same cause and contains no text of the peer.
func Explain(err error) string {
	switch reason(err) {
	case endedUnreachable:
		return "it does not answer: check the address, the firewalls on the way, and that the peer's " +
			"gateway runs"
	case endedTurnedAway:
		return "the peer's gateway rejects the connection: it does not know this cluster, so apply there " +
			"what " +
			"`causeway identity` prints here, or no controller of the peer is running"
	case endedBroken:
		return "the connection broke and is being opened again"
	case endedHandshake:
		return "the TLS handshake failed: check that both Links hold what `causeway identity` prints in " +
			"the " +
			"other cluster, and check both clocks"
	case endedUnanswered:
		return "it accepts the connection, and the TLS handshake gets no answer: a middlebox may drop it, " +
			"or large packets are lost; `causeway check` tests the path"
	case endedSilent:
		return "the peer's controller stopped sending"
	case endedSlow:
		return "the peer's controller does not read"
	case endedProtocol:
		return "the peer speaks another protocol: check its version"
	case endedLimit:
		return "the peer sends more than this cluster accepts"
	case endedNotLinked:
		return "the peer does not know this cluster: apply there what `causeway identity` prints here"
	case endedNotTrusted:
		return "the certificate of the peer's controller has expired or does not match the Link any more: " +
			"check that the Link holds what `causeway identity` prints in the other cluster"
	case endedStreams, endedConnections:
		return "the peer's controller has too many streams"
	case endedOrderly, endedReopened:
		return "the peer's controller ended the stream in good order, as it does when it stops; it is " +
			"dialed again"
	case endedNotReady, endedStopping:
		return "the peer's controller is starting"
	}
	return "the stream ended for a reason that the controller's log has"
}
