package console

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// suffix is the one of an image file's name, by its first bytes.
func suffix(b []byte) string {
	switch t := pictureType(b); {
	case t != "":
		return map[string]string{"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}[t]
	case bytes.HasPrefix(b, []byte("II*\x00")), bytes.HasPrefix(b, []byte("MM\x00*")):
		return ".tif"
	case bytes.HasPrefix(b, []byte("BM")):
		return ".bmp"
	}
	return ".bin"
}

// exportNormals sends a training set as it is stored, image by image. The archive's
// names are numbers: whatever images were called, nothing is written beside them.
func (c *Console) exportNormals(q *request) (any, error) {
	v := q.params("anomalies")
	if v.err != nil {
		return nil, v.err
	}
	name, kind := q.PathValue("detector"), "normals"
	if _, err := c.detectors.Get(q.ctx, name); err != nil {
		return nil, err
	}
	anomalies := v.yes("anomalies")
	if anomalies {
		kind = "anomalies"
	}
	all, err := c.normals.List(q.ctx, name, anomalies)
	if err != nil {
		return nil, err
	}
	return respond(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Type", "application/zip")
		w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="%s-%s.zip"`, name, kind))
		if err := c.pack(r, w, all); err != nil && r.Context().Err() == nil {
			c.log.Warn().Err(err).Str("detector", name).Msg("an export has broken off")
			panic(http.ErrAbortHandler) // so that who gets it sees that it is not whole
		}
		return nil
	}), nil
}

// pack writes the archive; a normal that is gone meanwhile, or has no image, is in
// the list alone.
func (c *Console) pack(r *http.Request, w http.ResponseWriter, all []stream.Normal) error {
	z := zip.NewWriter(w)
	put := func(name string, at time.Time, data []byte) error {
		f, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: at})
		if err == nil {
			_, err = f.Write(data)
		}
		return err
	}
	var list bytes.Buffer
	for _, n := range all {
		line := struct {
			File string `json:"file,omitempty"`
			stream.Normal
		}{Normal: n}
		x, err := c.normals.Get(r.Context(), n.Detector, n.Sequence)
		switch {
		case errors.Is(err, stream.ErrNotFound):
			line.Problem = err.Error()
		case err != nil:
			return err
		case x.Problem != "" || len(x.Image) == 0:
			line.Problem = x.Problem
		default:
			line.File = fmt.Sprintf("%08d%s", n.Sequence, suffix(x.Image))
			if err := put(line.File, n.StoredAt, x.Image); err != nil {
				return err
			}
		}
		if err := json.NewEncoder(&list).Encode(line); err != nil {
			return err
		}
	}
	if err := put("normals.jsonl", time.Now(), list.Bytes()); err != nil {
		return err
	}
	return z.Close()
}
