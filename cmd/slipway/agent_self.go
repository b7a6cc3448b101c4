//go:build !embed && !windows

package main

import "os"

// agentCommand returns this program itself as the supervisor, so that plain go build and go run
// work.
func agentCommand() ([]string, error) {
	self, err := os.Executable()
	return []string{self, "agent"}, err
}
