package aci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"
)

// Docker is a [Backend] with real containers.
type Docker struct {
	engine  *client.Client
	network string
	scale   float64
}

// keyLabel is a label on each container of an emulator.
const keyLabel = "aci-emulator"

// NewDocker connects to the engine that DOCKER_HOST names, or to the engine of this machine.
// Containers join network; "" is the engine's default network. cpuScale divides the processors that
// groups request, for small machines; 0 sets no limit.
func NewDocker(network string, cpuScale float64) (*Docker, error) {
	engine, err := client.New(client.FromEnv, client.WithUserAgent("aci-emulator"))
	if err != nil {
		return nil, err
	}
	return &Docker{engine: engine, network: network, scale: cpuScale}, nil
}

// Ping returns an error if the engine does not answer.
func (d *Docker) Ping(ctx context.Context) error {
	_, err := d.engine.Ping(ctx, client.PingOptions{})
	return err
}

// Pull implements [Backend]. It does not pull an image that is already there.
func (d *Docker) Pull(ctx context.Context, image string, login *Login) error {
	if _, err := d.engine.ImageInspect(ctx, image); err == nil {
		return nil
	}
	options := client.ImagePullOptions{}
	if login != nil {
		header, err := authconfig.Encode(registrytypes.AuthConfig{Username: login.Username, Password: login.Password,
			ServerAddress: login.Server})
		if err != nil {
			return err
		}
		options.RegistryAuth = header
	}
	got, err := d.engine.ImagePull(ctx, image, options)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoImage, err)
	}
	for m, err := range got.JSONMessages(ctx) {
		if err == nil && m.Error != nil {
			err = m.Error
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%w: %w", ErrNoImage, err), got.Close())
		}
	}
	return got.Close()
}

// Start implements [Backend].
func (d *Docker) Start(ctx context.Context, s Spec) (Container, error) {
	if _, err := d.engine.ContainerRemove(ctx, s.Key, client.ContainerRemoveOptions{Force: true}); err != nil &&
		!cerrdefs.IsNotFound(err) {
		return nil, err
	}
	config := &container.Config{Image: s.Image, Env: s.Env, Labels: map[string]string{keyLabel: s.Key}}
	if len(s.Command) > 0 {
		config.Entrypoint = s.Command
	}
	host := &container.HostConfig{NetworkMode: container.NetworkMode(d.network)}
	host.Memory = int64(s.MemoryGB * (1 << 30))
	host.MemorySwap = host.Memory
	if d.scale > 0 {
		host.NanoCPUs = int64(s.CPU / d.scale * 1e9)
	}
	if s.With != "" && d.network != "host" {
		host.NetworkMode = container.NetworkMode("container:" + s.With)
	}
	for _, m := range s.Mounts {
		host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: m.Target,
			ReadOnly: m.ReadOnly})
	}
	made, err := d.engine.ContainerCreate(ctx,
		client.ContainerCreateOptions{Name: s.Key, Config: config, HostConfig: host})
	if err != nil {
		return nil, err
	}
	c := &dockerContainer{engine: d.engine, id: made.ID}
	if _, err := d.engine.ContainerStart(ctx, made.ID, client.ContainerStartOptions{}); err != nil {
		return nil, errors.Join(err, c.Remove(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Find implements [Backend].
func (d *Docker) Find(ctx context.Context, key string) (Container, bool) {
	got, err := d.engine.ContainerInspect(ctx, key, client.ContainerInspectOptions{})
	if err != nil || got.Container.Config.Labels[keyLabel] != key {
		return nil, false
	}
	return &dockerContainer{engine: d.engine, id: got.Container.ID}, true
}

type dockerContainer struct {
	engine *client.Client
	id     string
}

func (c *dockerContainer) Wait(ctx context.Context) (Exit, error) {
	w := c.engine.ContainerWait(ctx, c.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case err := <-w.Error:
		return Exit{}, err
	case <-w.Result:
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
	got, err := c.engine.ContainerInspect(ctx, c.id, client.ContainerInspectOptions{})
	if err != nil {
		return Exit{}, err
	}
	s := got.Container.State
	e := Exit{Code: s.ExitCode, OOM: s.OOMKilled && s.ExitCode == 137}
	e.Started, _ = time.Parse(time.RFC3339Nano, s.StartedAt) // the engine wrote these times
	e.Finished, _ = time.Parse(time.RFC3339Nano, s.FinishedAt)
	if e.Finished.Before(e.Started) { // of a container that ended at once
		e.Finished = e.Started
	}
	return e, nil
}

func (c *dockerContainer) Stop(ctx context.Context, grace time.Duration) error {
	if grace <= 0 {
		_, err := c.engine.ContainerKill(ctx, c.id, client.ContainerKillOptions{Signal: "SIGKILL"})
		if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
			err = nil
		}
		return err
	}
	seconds := max(1, int(grace.Seconds()))
	_, err := c.engine.ContainerStop(ctx, c.id, client.ContainerStopOptions{Timeout: &seconds})
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *dockerContainer) Logs(ctx context.Context, tail int, times bool) (string, error) {
	options := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: times}
	if tail > 0 {
		options.Tail = strconv.Itoa(tail)
	}
	r, err := c.engine.ContainerLogs(ctx, c.id, options)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	_, err = stdcopy.StdCopy(&b, &b, r)
	return b.String(), errors.Join(err, r.Close())
}

func (c *dockerContainer) Exec(ctx context.Context, command []string, in io.Reader, out io.Writer) error {
	made, err := c.engine.ExecCreate(ctx, c.id,
		client.ExecCreateOptions{TTY: true, AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: command})
	if err != nil {
		return err
	}
	at, err := c.engine.ExecAttach(ctx, made.ID, client.ExecAttachOptions{TTY: true})
	if err != nil {
		return err
	}
	defer at.Close()
	go func() {
		_, _ = io.Copy(at.Conn, in) // until one side hangs up
		_ = at.CloseWrite()
	}()
	_, err = io.Copy(out, at.Reader)
	return err
}

func (c *dockerContainer) Remove(ctx context.Context) error {
	_, err := c.engine.ContainerRemove(ctx, c.id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return nil
	}
	return err
}
