package streamtest

import (
	"bytes"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/nearmiss/nearmiss/stream"
)

var eventSchema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(stream.EventSchema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("event.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("event.json")
})

// checkSchema holds an event's data against the schema in the repository.
func checkSchema(t testing.TB, data []byte) {
	t.Helper()
	s, err := eventSchema()
	if err != nil {
		t.Fatalf("schema: %v", err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("event %s: %v", data, err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("event %s: %v", data, err)
	}
}
