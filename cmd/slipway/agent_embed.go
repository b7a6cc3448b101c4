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

// agentCommand is the small supervisor that make build puts into this program. It is written into the user's
// cache once, under a name that its content gives; where there is no cache, this program itself takes its place.
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
