package aci

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrNoImage is what a [Backend] says of an image that it cannot get.
var ErrNoImage = errors.New("the image cannot be pulled")

// Backend runs the containers of groups.
type Backend interface {
	// Pull makes sure of an image. [ErrNoImage] if the registry refuses or does not know it.
	Pull(ctx context.Context, image string, login *Login) error
	// Start makes a container and starts it. One of the same key that there is from before is removed.
	Start(ctx context.Context, s Spec) (Container, error)
	// Find gives the container of a key that an earlier emulator started.
	Find(ctx context.Context, key string) (Container, bool)
}

// Container is one that was started. Its methods may be called at once.
type Container interface {
	// Wait waits for its end.
	Wait(ctx context.Context) (Exit, error)
	// Stop sends SIGTERM, and SIGKILL after grace. It returns when the container has ended.
	Stop(ctx context.Context, grace time.Duration) error
	// Logs gives what it wrote, the last lines if tail is not 0, with RFC 3339 times before each if asked for.
	Logs(ctx context.Context, tail int, times bool) (string, error)
	// Exec runs a command in it.
	Exec(ctx context.Context, command []string, in io.Reader, out io.Writer) error
	Remove(ctx context.Context) error
}

// Spec is a container to start.
type Spec struct {
	Key      string // names it
	Image    string
	Command  []string // none: the image's own
	Env      []string
	CPU      float64
	MemoryGB float64
	Mounts   []Mount
	With     string // key of the container whose network it shares
}

// Mount is a folder of this machine in a container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// Login is for one registry.
type Login struct{ Server, Username, Password string }

// Exit is how a container ended.
type Exit struct {
	Code              int
	OOM               bool
	Started, Finished time.Time
}
