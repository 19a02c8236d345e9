// Package imaging turns the bytes of an image file into the pixels a model
// sees: it checks, decodes, turns upright, resizes and crops.
//
// # Checking first
//
// Frames come from cameras and from people, so every file is treated as
// hostile. [Inspect] reads only the header (format, size in pixels, depth, the
// memory a decoder would take) and refuses what exceeds [Limits] before
// anything is allocated for it. [Decode] always inspects first. Whatever is
// refused comes back as a [RejectError] with a stable [Code]; trying again
// cannot help.
//
// # Pixels
//
// An [Image] is 8-bit RGB. Grey becomes three equal channels, palettes are
// looked up, 16-bit samples are scaled (not clipped) to 8 bits, alpha is
// dropped, and the EXIF orientation of JPEG, PNG, TIFF and WebP files is
// applied. JPEG and WebP chroma is enlarged as libjpeg and libwebp do it, so
// that the pixels agree with what Python's Pillow gives for the same file.
//
// # Resizing
//
// [Resize] is Pillow's resampler to the bit: separable, support scaled with the
// reduction, coefficients in 22-bit fixed point, horizontal pass first, 8-bit
// values between the passes. [Preprocess] resizes the shorter side and
// keeps the middle, with torchvision's roundings on request, and computes only
// the pixels that the crop keeps. Of a large frame it also makes [Tiles], of the same
// rows as they are decoded.
package imaging
