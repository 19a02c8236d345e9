// Package sink brings events to people and machines outside: an event on NATS is
// an alarm only once it has been delivered.
//
// A sink ([Sink]) is an entry of the bucket NM_SINKS: which events it wants, how
// often, and where they go. The engine ([Engine]) follows the bucket and runs
// every sink by itself, so that a slow receiver delays nobody else. Each has one
// durable consumer, and an event is acknowledged only after the receiver has it.
//
// An event takes one way: [Notice] → decide (does the sink want it) → [Sender]
// → acknowledged, given back for later, or dead. Every outcome is counted with
// its reason. A sender says by its error which way a failure goes: [Permanent],
// [Later], [Gone]; anything else is tried again.
//
// The kinds (webhook, …) are packages of their own, which the command hands to
// the engine ([Kinds]). Secrets are named, never stored: file:PATH or env:NAME.
//
// # Goroutines and locks
//
// [Engine.Run] owns everything and returns after the last of it has ended. It follows
// the bucket itself, and starts one goroutine a sink, which opens the sender and runs
// the delivery. That has for each of its two consumers one goroutine that pulls and one
// that checks what was lost; several that try, each with a heartbeat; one that tells
// what was held back; and one that collects for a digest or follows, where the sender
// does.
//
// Engine.mu guards the sinks that run, and is held while one is stopped. While it is
// held those of a delivery's parts may be taken: judge.mu (cool-downs and rates),
// retries.mu (tries), breaker.mu (whether the receiver takes anything), lossCheck.mu
// (what came) and counters.mu. None of these is held while another is taken or anybody
// is waited for.
package sink
