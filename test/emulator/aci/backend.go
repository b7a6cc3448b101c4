package aci

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrNoImage is the error of a [Backend] that cannot get an image.
var ErrNoImage = errors.New("the image cannot be pulled")

// Backend runs the containers of groups.
type Backend interface {
	// Pull makes sure that an image is there. It returns [ErrNoImage] if the registry refuses the
	// image or does not know it.
	Pull(ctx context.Context, image string, login *Login) error
	// Start makes a container and starts it. It first removes an older container with the same key.
	Start(ctx context.Context, s Spec) (Container, error)
	// Find returns the container with a key that an earlier emulator started.
	Find(ctx context.Context, key string) (Container, bool)
}

// Container is a container that was started. Its methods may be called concurrently.
type Container interface {
	// Wait waits until the container has ended.
	Wait(ctx context.Context) (Exit, error)
	// Stop sends SIGTERM, and SIGKILL after grace. It returns when the container has ended.
	Stop(ctx context.Context, grace time.Duration) error
	// Logs returns the output of the container: the last lines if tail is not 0, each after its RFC
	// 3339 time if times is true.
	Logs(ctx context.Context, tail int, times bool) (string, error)
	// Exec runs a command in the container.
	Exec(ctx context.Context, command []string, in io.Reader, out io.Writer) error
	Remove(ctx context.Context) error
}

// Spec is a container to start.
type Spec struct {
	Key      string // the name of the container
	Image    string
	Command  []string // nil: the command of the image
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

// Login is the login for one registry.
type Login struct{ Server, Username, Password string }

// Exit is how a container ended.
type Exit struct {
	Code              int
	OOM               bool
	Started, Finished time.Time
}
