package sink

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// maxSecret bounds a secret's file.
const maxSecret = 64 << 10

// checkSecret says whether s names a secret, without looking for it. A secret
// itself is refused: it would be stored where many can read it.
func checkSecret(s string) error {
	if s == "" {
		return nil
	}
	kind, where, _ := strings.Cut(s, ":")
	if (kind == "file" || kind == "env") && where != "" {
		return nil
	}
	return errors.New("its secret must be named, not given: file:PATH or env:NAME on the machine that runs the sinks")
}

// readSecret looks the secret up. Errors do not contain it.
func readSecret(s string) (string, error) {
	if err := checkSecret(s); err != nil || s == "" {
		return "", err
	}
	kind, where, _ := strings.Cut(s, ":")
	if kind == "env" {
		v, ok := os.LookupEnv(where)
		if !ok {
			return "", fmt.Errorf("secret: the environment has no %s", where)
		}
		return v, nil
	}
	st, err := os.Stat(where)
	if err != nil {
		return "", fmt.Errorf("secret: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxSecret {
		return "", fmt.Errorf("secret: %s is not a file of at most %d bytes", where, maxSecret)
	}
	b, err := os.ReadFile(where)
	if err != nil {
		return "", fmt.Errorf("secret: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
