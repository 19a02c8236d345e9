// Package stream is Nearmiss on NATS: the subjects and messages, the JetStream
// topology behind them, and what is stored there.
//
// A frame is one message whose payload is the image file's bytes, published on
// <prefix>.frames.<detector>.<camera>. A worker takes frames from the work queue, has
// them scored by the active release of their detector, publishes a score on core NATS
// for every frame and a CloudEvent for every frame that is anomalous or could not be
// read, and acknowledges the frame only after its event is stored. A trainer does the
// same for training requests.
//
// What travels: names, subjects, frames, events, verdicts, errors, and the topology of
// streams and buckets (names.go, frame.go, large.go, event.go, feedback.go, audit.go,
// trace.go, errors.go, topology.go, connect.go, watch.go). What is stored:
// [Installation] opens the stores of detectors, jobs, normals, evidence, events and
// releases, and reads and collects them (installation.go, patient.go, detector.go, jobs.go,
// history.go, normals.go, evidence.go, object.go, events.go, cameras.go, queue.go,
// lost.go, edge.go, levels.go, status.go, health.go, unreadable.go, collect.go,
// dead.go). What is asked: a [Client] asks the services (client.go, api.go,
// calibration.go, service.go).
//
// These are one package since detectors, jobs, verdicts and evidence are both: they
// travel in requests and events, and are stored as they are.
//
// # The processes
//
// They are packages of their own, use this one, and do not know each other:
//
//	stream/worker    turns frames into events
//	stream/trainer   turns training requests and verdicts into releases
//	stream/control   changes what people change: the command line and others ask it
//	stream/steward   looks after the frame queue, beside the broker
//
// The comment of each has its steps, its goroutines and its locks. What several of them do in the
// same way lies in stream/internal.
//
// This package knows nothing of ONNX, banks or training, and starts no goroutine that
// outlives a call.
//
// # Guarantees
//
//   - A frame that the broker has acknowledged is scored at least once. A frame
//     can be scored twice after a crash or a lost connection (its score message
//     is then sent again), but its event is stored once.
//   - A frame that cannot be handled ends in the dead letters with a coded
//     reason, and never blocks the frames behind it.
//   - No event mixes two releases: a batch is scored by one release from the
//     first frame to the last, and releases are exchanged between batches.
package stream
