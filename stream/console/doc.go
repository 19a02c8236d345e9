// Package console is the page on which operators see the cameras, judge alarms and
// tune detectors: an HTTP server, its API and the page itself, which is embedded.
//
// It is a client of the broker like any other and keeps nothing on disk. What it
// knows of events and verdicts it reads from their streams at the start and follows
// from then on; scores it receives as they are published. What it is asked to change
// goes the way on which the command line's orders go.
//
// A request takes one way: traced → door.guard (which site asks, and who) → the route
// → a method of the part that answers for its area: door (sign-in, users, audit), live,
// wall (cameras, state of everything), gallery (pictures), alarms (events, incidents,
// verdicts), tuning (detectors, normals, releases), jobs, sinks, dead letters. The parts
// ask the backend, which is the broker as the page uses it. What they follow there goes
// into feed (scores), index (events, verdicts) and jobs, and from there through the hub
// to the pages that listen.
//
// # Goroutines and locks
//
// Console.Run owns everything and returns after the last of it has ended: the HTTP
// server, one follower each of events, detectors, verdicts, scores, jobs and users, the
// ticker of the live stream, and the sender of verdicts, which holds each for some seconds so
// that it can be taken back.
//
// The locks, none of which is held while another is taken or anybody is waited for:
// feed.mu (cameras and their last scores), index.mu (events, incidents and
// verdicts), jobs.mu (their progress), hub.mu (who listens), client.mu (what one listener
// has yet to get), holder.mu (verdicts that can still be taken back), people.mu (users),
// tries.mu and setup.mu (who may try to sign in), and those of caches. People.reading is
// held while the broker is asked for the users, so that older answers come first. What
// has no lock is set before others see it: door's by Listen, what the backend and door
// open before the backend is ready.
package console
