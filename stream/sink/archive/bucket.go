package archive

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"path"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/nearmiss/nearmiss/internal/certs"
	"github.com/nearmiss/nearmiss/stream/sink"
)

type bucket struct {
	client    *minio.Client
	transport *http.Transport
	name      string
	prefix    string
	encrypt   bool
}

func newBucket(c Config, name, prefix, secret string) (*bucket, error) {
	c.Endpoint = cmp.Or(c.Endpoint, "s3.amazonaws.com")
	if c.Region == "" {
		c.Region = "us-east-1" // asked for, it would be another request
	}
	if name == "" {
		return nil, errors.New("the address names no bucket: write it as s3://BUCKET/PREFIX")
	}
	trust, err := certs.Client(c.CAFile, "", "")
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		TLSClientConfig: trust, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 25 * time.Second,
	}
	lookup := minio.BucketLookupPath
	if c.Endpoint == "s3.amazonaws.com" {
		lookup = minio.BucketLookupDNS
	}
	client, err := minio.New(c.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, secret, ""), Secure: !c.Plain, Region: c.Region, Transport: t, BucketLookup: lookup, MaxRetries: 1,
	})
	if err != nil {
		return nil, err
	}
	return &bucket{client: client, transport: t, name: name, prefix: prefix, encrypt: c.Encrypt}, nil
}

func (b *bucket) put(ctx context.Context, key, contentType string, data []byte) error {
	// In one request, with a check sum that the server compares before it answers.
	sum := sha256.Sum256(data)
	opts := minio.PutObjectOptions{
		ContentType: contentType, DisableMultipart: true,
		UserMetadata: map[string]string{"X-Amz-Checksum-Sha256": base64.StdEncoding.EncodeToString(sum[:])},
	}
	if b.encrypt {
		opts.ServerSideEncryption = encrypt.NewSSE()
	}
	_, err := b.client.PutObject(ctx, b.name, path.Join(b.prefix, key), bytes.NewReader(data), int64(len(data)), opts)
	if err == nil {
		return nil
	}
	answer := minio.ToErrorResponse(err)
	err = fmt.Errorf("bucket %s: %s: %w", b.name, answer.Code, err)
	// A wrong key or a bucket that is not there are mended at the server; what is
	// said of the object itself stays true.
	switch answer.Code {
	case "EntityTooLarge", "KeyTooLongError", "InvalidArgument":
		return &sink.Permanent{Err: err}
	}
	return err
}

// note: objects have no lines that can be added; each event's own file is all.
func (b *bucket) note(time.Time, []byte) error { return nil }

func (b *bucket) close() { b.transport.CloseIdleConnections() }
