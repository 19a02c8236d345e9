package webhook

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime/multipart"
	"net/textproto"

	"github.com/nearmiss/nearmiss/stream/sink"
)

// maxPicture is the size of a picture that goes with an alarm, in bytes.
const maxPicture = 256 << 10

// withRoutingKey puts PagerDuty's key into the body. Errors do not show it.
func withRoutingKey(text []byte, key string) ([]byte, error) {
	var body map[string]json.RawMessage
	if json.Unmarshal(text, &body) != nil || body == nil {
		return nil, errors.New("webhook: a routing key is put into a JSON object, which the body is not")
	}
	raw, err := json.Marshal(key)
	if err != nil {
		return nil, errors.New("webhook: the routing key is no text")
	}
	body["routing_key"] = raw
	return json.Marshal(body)
}

// inForm makes a multipart form of a body and a picture. Its boundary follows from
// the id, so that another try is the same body.
func inForm(preset, id string, text []byte, contentType string, picture []byte) ([]byte, string, error) {
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	sum := sha256.Sum256([]byte(id))
	if err := w.SetBoundary("nearmiss-" + hex.EncodeToString(sum[:16])); err != nil {
		return nil, "", fmt.Errorf("webhook: %w", err)
	}
	name := "event"
	if preset == "discord" {
		name = "payload_json"
	}
	for _, p := range []struct {
		disposition, contentType string
		data                     []byte
	}{
		{`form-data; name="` + name + `"`, contentType, text},
		{`form-data; name="file"; filename="` + sink.Overlay + `"`, "image/jpeg", picture},
	} {
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {p.disposition}, "Content-Type": {p.contentType}})
		if err == nil {
			_, err = part.Write(p.data)
		}
		if err != nil {
			return nil, "", fmt.Errorf("webhook: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, "", fmt.Errorf("webhook: %w", err)
	}
	return out.Bytes(), w.FormDataContentType(), nil
}
