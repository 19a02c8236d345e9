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
package sink
