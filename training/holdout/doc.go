// Package holdout decides which normals calibrate a detector and which fill its
// bank, for normals that are no independent draws: frames of a camera resemble
// the frames before and after them.
//
// A false-alarm rate is promised on the assumption that a new normal is as
// strange to the bank as the held-out ones are. Frames of a video that are held
// out at random have near-twins in the bank, which new frames will not have:
// measured on a window that slides over magnetic tiles with 90 % overlap, such
// a threshold promised 5 % and gave 28 to 41 % false alarms. So where normals
// resemble their neighbours in time, whole stretches are held out, nothing near
// their ends is used, and what the normals are worth is reported: how many
// independent pictures would say as much.
//
// How far frames resemble one another is seen in the embeddings, by the distance
// between frames that are so many places apart (their variogram). It needs to
// know in which order they were taken: by camera and time, or else by the names
// of their files.
package holdout
