//go:build real

package docker_test

import (
	"encoding/json"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/test/testenv"
)

// This program prints what docker-py would send for options of containers. It connects to nothing.
const asDockerPy = `
import json, sys
from docker import APIClient
from docker.models.containers import _create_container_args
client = APIClient(base_url="tcp://127.0.0.1:1", version="1.41")
out = []
for kwargs in json.load(sys.stdin):
    args = _create_container_args({**kwargs, "image": "image", "command": ["true"], "detach": True, "version": "1.41"})
    for own in ("platform", "name", "use_config_proxy"):
        args.pop(own, None)
    out.append(client.create_container_config(**args))
json.dump(out, sys.stdout)
`

// Options mean the same as in the docker-py that dagster-docker uses.
func TestOptionsAsDockerPyReadsThem(t *testing.T) {
	python := filepath.Join(testenv.DagsterBin(t), "python")
	options := []string{
		`{"ports": {"8080/tcp": {"HostIp": "127.0.0.1", "HostPort": "18080"}, "53/udp": [1053, null], "80": 8080}}`,
		`{"device_read_bps": [{"Path": "/dev/sda", "Rate": 1000}], "device_write_bps": [{"Path": "/dev/sda", "Rate": ` +
			`1001}]}`,
		`{"device_read_iops": [{"Path": "/dev/sda", "Rate": 10}], "device_write_iops": [{"Path": "/dev/sda", "Rate": ` +
			`11}]}`,
		`{"blkio_weight": 10, "blkio_weight_device": [{"Path": "/dev/sda", "Weight": 10}]}`,
		`{"volumes_from": "a,b:ro"}`, `{"volumes_from": ["a", "b:ro"]}`,
		`{"links": [["db", "database"]]}`, `{"links": {"db": null}}`, `{"links": {"db": "database"}}`,
		`{"volumes": {"/a": {"bind": "/b", "mode": "ro", "propagation": "rslave"}, "c": {"bind": "/d", "ro": true}}}`,
		`{"volumes": ["/a:/b:ro", "data:/d", "/e"]}`,
		`{"healthcheck": {"test": "true", "interval": 1000000000, "retries": 3}}`,
		`{"healthcheck": {"test": ["CMD", "true"], "start_period": 5}}`,
		`{"ulimits": [{"name": "nofile", "soft": 1, "hard": 2}, {"Name": "core", "Soft": 3, "Hard": 4}]}`,
		`{"log_config": {"type": "json-file", "config": {"max-size": "10m"}}}`, `{"log_config": {"type": "none"}}`,
		`{"device_requests": [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]], "options": {"a": "b"}}]}`,
		`{"devices": ["/dev/a:/dev/b:r", "/dev/c", {"PathOnHost": "/dev/d", "PathInContainer": "/dev/e", ` +
			`"CgroupPermissions": "rwm"}]}`,
		`{"tmpfs": {"/a": "size=1m"}}`, `{"tmpfs": ["/a:size=1m", "/b"]}`,
		`{"sysctls": {"net.core.somaxconn": 1024}}`, `{"extra_hosts": {"db": "10.0.0.1"}}`,
		`{"extra_hosts": ["db:10.0.0.1"]}`,
		`{"mem_limit": "1g", "memswap_limit": -1, "mem_reservation": 1048576, "mem_swappiness": 10, "shm_size": "64m"}`,
		`{"mounts": [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true}]}`,
		`{"user": 1000, "group_add": [10, "video"], "hostname": "h", "domainname": "d", "working_dir": "/w", ` +
			`"entrypoint": "sh -c 'a b'"}`,
		`{"cpu_shares": 512, "cpu_quota": 1000, "cpu_period": 2000, "cpuset_cpus": "0-1", "cpuset_mems": "0", ` +
			`"nano_cpus": 500000000, "pids_limit": 10}`,
		`{"restart_policy": {"Name": "on-failure", "MaximumRetryCount": 2}, "security_opt": ["no-new-privileges"], ` +
			`"storage_opt": {"size": "1g"}}`,
		`{"dns": ["1.1.1.1"], "dns_opt": ["ndots:1"], "dns_search": ["example"], "network_mode": "host", "ipc_mode": ` +
			`"host", "pid_mode": "host", "uts_mode": "host", "userns_mode": "host"}`,
		`{"init": true, "tty": true, "stdin_open": true, "read_only": true, "privileged": true, "publish_all_ports": ` +
			`true, "oom_kill_disable": true, "oom_score_adj": 5, "stop_signal": "SIGINT"}`,
		`{"cgroup_parent": "/x", "cgroupns": "host", "device_cgroup_rules": ["c 1:3 mr"], "runtime": "runc", ` +
			`"isolation": "default", "volume_driver": "local"}`,
	}
	cmd := exec.CommandContext(t.Context(), python, "-c", asDockerPy)
	cmd.Stdin = strings.NewReader("[" + strings.Join(options, ",") + "]")
	out, err := cmd.Output()
	var want []map[string]any
	if err == nil {
		err = json.Unmarshal(out, &want)
	}
	if err != nil || len(want) != len(options) {
		t.Fatalf("docker-py: %v\n%s", err, out)
	}
	for i, kwargs := range options {
		previewer, _ := launcher.As[launcher.Previewer](must(t, `{"image": "image", "container_kwargs": `+kwargs+`}`))
		text, err := previewer.Preview(t.Context(), (&fakeEngine{}).request())
		if err != nil {
			t.Fatal(err)
		}
		var sent struct{ Config, HostConfig map[string]any }
		if err := json.Unmarshal(text, &sent); err != nil {
			t.Fatal(err)
		}
		got := maps.Clone(sent.Config)
		got["HostConfig"] = sent.HostConfig
		delete(sent.HostConfig, "ConsoleSize") // [0, 0]
		delete(got, "Labels")
		if d := testenv.Diff(bare(want[i]), bare(got)); d != "" {
			t.Errorf("%s (-docker-py +slipway):\n%s", kwargs, d)
		}
	}
}
