package registry

// ParseManifest is for the fuzz test.
var ParseManifest = parseManifest
