//go:build real

package docker_test

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/launcher"
)

// If the real engine refuses options of one run, that run fails at once with the engine's text.
// Nothing is left behind.
func TestOptionsThatTheEngineRefuses(t *testing.T) {
	b := newBench(t)
	taken, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() }) // nothing is written through it
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	t.Run("options", func(t *testing.T) {
		for kwargs, words := range map[string]string{
			`"user": "nobody2"`:        "nobody2",
			`"group_add": ["nobody2"]`: "nobody2",
			`"device_requests": [{"capabilities": [["gpu"]], "count": -1}]`: "could not select " +
				"device driver",
			`"network_mode": "container:gone"`:                                                    "gone",
			`"network_mode": "no-such-network"`:                                                   "no-such-network",
			`"ipc_mode": "container:gone"`:                                                        "gone",
			`"pid_mode": "container:gone"`:                                                        "gone",
			`"volumes_from": ["gone"]`:                                                            "gone",
			`"links": {"gone": "x"}`:                                                              "gone",
			`"sysctls": {"kernel.panic": "1"}`:                                                    "kernel.panic",
			`"ulimits": [{"name": "nofile", "soft": 99999999999, "hard": 99999999999}]`:           "limit",
			`"ulimits": [{"name": "nothing", "soft": 1, "hard": 1}]`:                              "NOTHING",
			`"working_dir": "/etc/passwd"`:                                                        "/etc/passwd",
			`"entrypoint": ["/no/such/program"]`:                                                  "/no/such/program",
			`"volumes": ["/etc/passwd:/etc"]`:                                                     "not a directory",
			`"volumes": ["data:relative"]`:                                                        "relative",
			`"mounts": [{"Type": "bind", "Source": "/no/such/folder", "Target": "/x"}]`:           "/no/such/folder",
			`"volumes": ["x:/x"], "volume_driver": "nothing"`:                                     "nothing",
			`"tmpfs": {"/x": "nothing"}`:                                                          "nothing",
			`"ports": {"80/tcp": ` + port + `}`:                                                   port,
			`"runtime": "nothing"`:                                                                "nothing",
			`"log_config": {"type": "nothing"}`:                                                   "nothing",
			`"log_config": {"type": "syslog", "config": {"syslog-address": "tcp://127.0.0.1:1"}}`: "connection refused",
			`"devices": ["/dev/nothing"]`:                                                         "/dev/nothing",
			`"cap_add": ["NOTHING"]`:                                                              "NOTHING",
			`"security_opt": ["nothing=x"]`:                                                       "nothing",
			`"mem_limit": "1k"`:                                                                   "memory",
			`"cpuset_cpus": "999"`:                                                                "CPU",
			`"nano_cpus": 999000000000`:                                                           "CPU",
			`"restart_policy": {"Name": "sometimes"}`:                                             "sometimes",
			`"stop_signal": "SIGNOTHING"`:                                                         "SIGNOTHING",
			`"extra_hosts": ["nothing"]`:                                                          "nothing",
			`"platform": "linux/s390x"`:                                                           "platform",
			`"cgroup_parent": "/x", "cgroupns": "never"`:                                          "never",
		} {
			t.Run(kwargs, func(t *testing.T) {
				t.Parallel()
				l := must(t, "{pull_timeout: 1s}")
				req := b.request("true")
				req.Overrides = []launcher.Override{{Source: "container_context.docker",
					JSON: json.RawMessage(`{"container_kwargs": {` + kwargs + `}}`)}}
				got, err := l.Launch(t.Context(), req)
				if !errors.Is(err, launcher.ErrInvalid) || !strings.Contains(err.Error(), words) {
					t.Errorf("Launch = %+v, %v, want ErrInvalid with %q", got, err, words)
				}
				if found, err := b.engine.ContainerInspect(t.Context(), req.ID.String(),
					client.ContainerInspectOptions{}); err == nil {
					t.Errorf("a container is left: %+v", found.Container.State)
				}
			})
		}
	})
	l := must(t, "{network: none}")
	if got := b.until(l, b.launch(l, b.request("true")), ended); got.Status != launcher.Succeeded {
		t.Errorf("Health of a worker after them = %+v", got)
	}
}
