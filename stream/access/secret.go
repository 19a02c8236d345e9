package access

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"
)

// bcryptCost is low because passwords are 128 random bits, which nobody can
// guess: a check takes 25 ms, and a broker's restart brings all cameras at once.
const bcryptCost = 8

// NewNKey makes a key pair: the public half for the file, the seed for the client.
func NewNKey() (Key, []byte, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return Key{}, nil, fmt.Errorf("make a key: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return Key{}, nil, fmt.Errorf("make a key: %w", err)
	}
	seed, err := pair.Seed()
	if err != nil {
		return Key{}, nil, fmt.Errorf("make a key: %w", err)
	}
	return Key{Public: public}, seed, nil
}

// NewPassword makes a password of 128 random bits and its hash.
func NewPassword() (Key, string, error) {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return Key{}, "", fmt.Errorf("make a password: %w", err)
	}
	password := base64.RawURLEncoding.EncodeToString(raw)
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
	if err != nil {
		return Key{}, "", fmt.Errorf("hash a password: %w", err)
	}
	return Key{Hash: string(hash)}, password, nil
}
