//go:build embed && !windows

package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
)

//go:embed slipway-agent
var agentProgram []byte

// agentCommand returns the command of the small supervisor that make build embeds in this program.
// The supervisor is written once into the user's cache, under a name with the hash of its content.
// If that is impossible, this program itself is the supervisor.
func agentCommand() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	itself := []string{self, "agent"}
	cache, err := os.UserCacheDir()
	if err != nil {
		return itself, nil
	}
	file := filepath.Join(cache, "slipway", fmt.Sprintf("slipway-agent-%x", sha256.Sum256(agentProgram)))
	if got, err := os.ReadFile(file); err == nil && bytes.Equal(got, agentProgram) {
		return []string{file}, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return itself, nil
	}
	tmp := fmt.Sprintf("%s.%d", file, os.Getpid())
	if os.WriteFile(tmp, agentProgram, 0o700) != nil || os.Rename(tmp, file) != nil {
		_ = os.Remove(tmp)
		return itself, nil
	}
	return []string{file}, nil
}
