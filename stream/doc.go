// Package stream is Nearmiss on NATS: the subjects and messages, the JetStream
// topology behind them, and the consumers that turn frames into events.
//
// A frame is one message whose payload is the image file's bytes, published on
// <prefix>.frames.<detector>.<camera>. A [Worker] takes frames from the work
// queue, has them scored by the active release of their detector, publishes a
// score on core NATS for every frame and a CloudEvent for every frame that is
// anomalous or could not be read, and acknowledges the frame only after its
// event is stored. A [TrainingWorker] does the same for training requests.
//
// The package knows nothing of ONNX, banks or training: what scores images is
// a [Scorer] that a [Loader] opens from a release folder, what trains is a
// [Trainer]. Both are given by the caller.
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
