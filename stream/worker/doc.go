// Package worker turns frames into events. What scores images is a [Scorer] that a
// [Loader] opens from a release folder; the caller gives it.
//
// # A frame
//
// [stream.Frame.Message] makes the camera's message, which waits in NM_FRAMES. A lane
// takes a batch of them and calls detectorRunner.handle with the release in service:
//
//	read         message → frameTask: the frame, or why it cannot be read
//	prepare      of a frame that comes again or names an object: its earlier tries, its image
//	settle       the batch; frames that were prepared each alone
//	  score      Scorer.Score → the event of each frame
//	  judge      threshold, smoothing and drift, over the camera's last frames
//	  setAside   alarms whose pictures are to be drawn go to drawPictures
//	  publish    cool-down; keep the image, store the event
//	  finish     send the score, acknowledge the frame
//
// What fails for good takes the same way as a rejected event; anything else is
// given back (giveBack) and comes again. At the end of settle a candidate release scores
// the same frames, for comparison.
//
// In a learning phase detectorRunner.collect adds the frames themselves to NM_NORMALS,
// and requestTraining asks for the first training. What becomes of verdicts and training
// requests is described in package trainer.
//
// # Goroutines and locks
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
//	├ watchCameras         records when cameras sent frames, and reports silent ones
//	└ detectorRunner.run   one a detector
//	  ├ swapper            loads what should serve and exchanges it; owns loading
//	  ├ lane ×Lanes        pull, score, publish, acknowledge: one batch at a time
//	  │ └ heartbeat        shows the broker that the batch's frames are at work, or
//	  │                    wait to be stored
//	  ├ drawPictures       draws the pictures of alarms; fed by lanes, ends after them
//	  ├ learn              makes normals of the first frames, while there is no release
//	  ├ shed               drops old frames of live detectors
//	  └ notify             stores one notice; nothing waits for it but the end
//
// A release in service belongs to its runner and is lent to batches: a lane takes
// it with borrow, which counts it in loaded.users under detectorRunner.mu, and gives it
// back with users.Done. The swapper puts the new one in its place and closes the old
// one when users is zero. So a batch has one release from its first frame to its
// last, and a release is closed once, by the swapper or at the end of run.
//
// The locks, in the order in which they may be taken; none is held while the
// broker or the scorer is waited for, but for the first:
//
//  0. Worker.scoring: the exception, held while the scorer is waited for. Lanes hold it
//     for reading while they score. A frame that may have crashed a worker is scored
//     with the lock held for writing, alone, so that another crash is surely its fault.
//  1. Worker.mu: the runners.
//  2. detectorRunner.mu: what is wanted, what serves, the candidate and its report,
//     what was refused, and the context that ends when any of these changes.
//  3. loaded.mu: the drift tests of a release, by camera.
//
// Those of recentScores, inHand, pacer, recentFrames, cameraActivities,
// pull.Heartbeat, stream.Reporter and pull.Epoch are held alone. Counters are
// atomic. What has no lock has one owner: added and bounded are those of drawPictures,
// and a batch's frames its lane's until they are set aside, those of drawPictures from
// then on.
package worker
