// Package stream is Nearmiss on NATS: the subjects and messages, the JetStream
// topology behind them, and the consumers that turn frames into events.
//
// A frame is one message whose payload is the image file's bytes, published on
// <prefix>.frames.<detector>.<camera>. A [Worker] takes frames from the work
// queue, has them scored by the active release of their detector, publishes a
// score on core NATS for every frame and a CloudEvent for every frame that is
// anomalous or could not be read, and acknowledges the frame only after its
// event is stored. Package trainer does the same for training requests.
//
// What people change, package control changes: the command line and others ask it by
// a [Client]. [Installation] is the handle of what lies in the broker.
//
// The package knows nothing of ONNX, banks or training: what scores images is
// a [Scorer] that a [Loader] opens from a release folder, which the caller gives.
//
// # Six roles
//
// Each uses those above it. What travels: names, subjects, frames, events, errors,
// and the topology of streams and buckets (names.go, frame.go, event.go, errors.go,
// topology.go, connect.go, pull.go). What is stored: [Installation] opens the stores
// of detectors, jobs, normals, evidence, events and releases, and reads and collects
// them (installation.go, detector.go, jobs.go, normals.go, evidence.go, events.go,
// lost.go, status.go, collect.go, dead.go). A [Client] asks the services (client.go,
// api.go, calibration.go, service.go). Then the processes, which do not know each
// other: [Worker] (worker.go, runner.go, handle.go, …), package trainer, package
// control, and package steward beside the broker.
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
//
// # A frame
//
// A frame. [Frame.Message] makes the camera's message, which waits in NM_FRAMES. A
// lane takes a batch of them and calls detectorRunner.handle with the release in service:
//
//	read       message → frameTask: the frame, or why it cannot be read
//	prepare    what is known of earlier tries; the object, if it names one
//	score      Scorer.Score → the event of each frame
//	judge      smoothing and drift, over the camera's last frames
//	setAside   alarms whose pictures are to be drawn go to drawPictures
//	publish    keep the image, store the event
//	finish     send the score, acknowledge the frame
//
// What fails for good takes the same way as a rejected event; anything else is
// given back (giveBack) and comes again.
//
// In a learning phase detectorRunner.collect adds the frames themselves to NM_NORMALS,
// and learned asks for the first training. What becomes of verdicts and training
// requests is told by package trainer.
//
// # Goroutines and locks of a worker
//
// [Worker.Run] owns everything it starts and returns after the last of it has
// ended. There are two contexts: ctx ends when the worker is to stop, work when
// the frames under way are to be given up, which is the drain time later.
//
//	Run                    one runner for each detector, as configurations come and go
//	├ follow ×2            watches pointers and configurations; each change wakes Run
//	├ epoch.Follow         at each reconnect ends what waits for an answer that was lost
//	├ moveDeadLetters      moves frames that were delivered too often to the dead letters
//	├ adoptFrames          gives back the frames of workers that are gone
//	├ evict                clears the release cache
//	├ watchCameras         records when cameras sent frames, and tells of silent ones
//	└ detectorRunner.run   one a detector
//	  ├ swapper            loads what should serve and exchanges it; owns loading
//	  ├ lane ×Lanes        pull, score, publish, acknowledge: one batch at a time
//	  │ └ heartbeat        tells the broker that the batch's frames are at work, or
//	  │                    wait to be stored
//	  ├ drawPictures       draws the pictures of alarms; fed by lanes, ends after them
//	  ├ learn              makes normals of the first frames, while there is no release
//	  ├ shed               drops old frames of live detectors
//	  └ notify             stores one notice; nothing waits for it but the end
//
// A release in service belongs to its runner and is lent to batches: a lane takes
// it with borrow, which counts it in loaded.users under detectorRunner.mu, and gives it back
// with users.Done. The swapper puts the new one in its place and closes the old
// one when users is zero. So a batch has one release from its first frame to its
// last, and a release is closed once, by the swapper or at the end of run.
//
// The locks, in the order in which they may be taken; none is held while the
// broker or the scorer is waited for, but for the first:
//
//  0. Worker.scoring: the exception, held while the scorer is waited for. All that
//     score hold it for reading; who holds it alone scores a frame that may be
//     what ends processes, so that a death tells.
//  1. Worker.mu: the runners.
//  2. detectorRunner.mu: what is wanted, what serves, the candidate and its report, what was
//     refused, and the context that ends when any of these changes.
//  3. loaded.mu: the drift tests of a release, by camera.
//
// Those of recentScores, inHand, pacer, recentFrames, cameraActivities, heartbeat, reporter and Epoch are held
// alone. Counters are atomic. What has no lock has one owner: added and bounded are
// those of drawPictures, and a batch's frames its lane's until they are set aside,
// those of drawPictures from then on.
package stream
