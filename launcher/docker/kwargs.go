package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/creachadair/mds/shell"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/slipway-run/slipway/config"
)

// spec is the request to the engine that makes one container.
type spec struct {
	Config container.Config
	Host   container.HostConfig
	// Create has the platform. The other options are set when the container is made.
	Create client.ContainerCreateOptions
	MAC    network.HardwareAddr
	// Endpoints are the settings of the worker in a network, by the network's name.
	Endpoints map[string]*network.EndpointSettings
	// Networks are joined in order; the first one is joined when the container is made.
	Networks []string
	// Stop is the time in seconds between stop and kill that container_kwargs ask for, or nil.
	Stop *int
	// UseProxy is whether the worker gets the proxies of Docker's config.json; nil means yes.
	UseProxy *bool
	// Remove is true if auto_remove was asked for. Slipway removes the container after its end is
	// known instead of at once.
	Remove bool
}

// endpoint returns the settings of the worker in a network.
func (s *spec) endpoint(name string) *network.EndpointSettings {
	if e := s.Endpoints[name]; e != nil {
		return e
	}
	return &network.EndpointSettings{}
}

// networking returns the settings of the worker in its first network, or nil if it has none.
func (s *spec) networking() *network.NetworkingConfig {
	first := string(s.Host.NetworkMode)
	if s.Endpoints[first] == nil && len(s.MAC) == 0 {
		return nil
	}
	e := s.endpoint(first)
	if len(s.MAC) > 0 {
		e.MacAddress = s.MAC
	}
	return &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{first: e}}
}

// A keyword applies one of docker-py's keywords for containers. dagster-docker's container_kwargs
// are these keywords.
type keyword func(s *spec, value json.RawMessage) error

// field returns a keyword whose value is decoded unchanged.
func field[T any](at func(*spec) *T) keyword {
	return func(s *spec, value json.RawMessage) error { return strict(value, at(s)) }
}

func strict(value json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		var e *json.UnmarshalTypeError
		if !errors.As(err, &e) {
			return err
		}
		where := ""
		if e.Field != "" {
			where = e.Field + ": "
		}
		given, ok := jsonKinds[e.Value]
		if !ok {
			given = "the " + e.Value // "number 1.5"
		}
		return fmt.Errorf("%s%s is expected, not %s", where, kindOf(e.Type), given)
	}
	return nil
}

// jsonKinds translates package json's names of kinds of values.
var jsonKinds = map[string]string{"string": "a text", "number": "a number", "bool": "true or false", "array": "a list",
	"object": "a mapping"}

// kindOf describes the kind of value that a Go type has in YAML and JSON.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	default:
		return "a whole number"
	}
}

// size returns a keyword for a number of bytes, for example 1g or 268435456.
func size(at func(*spec) *int64) keyword {
	return func(s *spec, value json.RawMessage) error {
		text, err := scalar(value)
		if err != nil {
			return err
		}
		*at(s), err = bytesOf(text)
		return err
	}
}

// bytesOf parses a size as docker-py does: k, m and g, in either case and with or without b, are
// powers of 1024.
func bytesOf(text string) (int64, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil { // some options take -1 for no limit
		return n, nil
	}
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(text), "b"), "i")
	unit := ""
	if i := len(number) - 1; i >= 0 && strings.Contains("kmgt", number[i:]) {
		number, unit = number[:i], strings.ToUpper(number[i:])+"i"
	}
	n, err := config.ParseBytes(strings.TrimSpace(number) + unit)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size (for example: 512m or 1g)", text)
	}
	return n, nil
}

// word returns a keyword for a text that may be written as a number.
func word[T ~string](at func(*spec) *T) keyword {
	return func(s *spec, value json.RawMessage) error {
		text, err := scalar(value)
		*at(s) = T(text)
		return err
	}
}

func scalar(value json.RawMessage) (string, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case nil:
		return "", nil
	}
	return "", fmt.Errorf("a text or a number is expected, not %s", value)
}

// words returns a keyword for a list whose members may be numbers.
func words(at func(*spec) *[]string) keyword {
	return func(s *spec, value json.RawMessage) error {
		list, err := scalars(value)
		*at(s) = list
		return err
	}
}

func scalars(value json.RawMessage) ([]string, error) {
	var raw []json.RawMessage
	if err := strict(value, &raw); err != nil {
		return nil, err
	}
	list := make([]string, len(raw))
	for i, r := range raw {
		var err error
		if list[i], err = scalar(r); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// pairsOf reads a mapping of texts, or a list of texts that are cut at sep.
func pairsOf(value json.RawMessage, sep string) ([][2]string, error) {
	if isList(value) {
		var raw []json.RawMessage
		if err := strict(value, &raw); err != nil {
			return nil, err
		}
		out := make([][2]string, len(raw))
		for i, r := range raw {
			if pair, err := scalars(r); err == nil && len(pair) == 2 { // docker-py's links
				out[i] = [2]string(pair)
				continue
			}
			text, err := scalar(r)
			if err != nil {
				return nil, err
			}
			out[i][0], out[i][1], _ = strings.Cut(text, sep)
		}
		return out, nil
	}
	members, err := object(value)
	if err != nil {
		return nil, err
	}
	out := make([][2]string, len(members))
	for i, m := range members {
		out[i][0] = m.name
		if out[i][1], err = scalar(m.value); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return out, nil
}

func isList(value json.RawMessage) bool { return bytes.HasPrefix(bytes.TrimSpace(value), []byte("[")) }

// textMap returns a keyword for a mapping of texts, or a list of NAME sep VALUE.
func textMap(sep string, at func(*spec) *map[string]string) keyword {
	return func(s *spec, value json.RawMessage) error {
		pairs, err := pairsOf(value, sep)
		*at(s) = map[string]string{}
		for _, p := range pairs {
			(*at(s))[p[0]] = p[1]
		}
		return err
	}
}

// joined returns a keyword for a list of NAME:VALUE or NAME. It may be written as a mapping.
func joined(at func(*spec) *[]string) keyword {
	return func(s *spec, value json.RawMessage) error {
		pairs, err := pairsOf(value, ":")
		*at(s) = nil
		for _, p := range pairs {
			*at(s) = append(*at(s), strings.TrimSuffix(p[0]+":"+p[1], ":"))
		}
		return err
	}
}

type member struct {
	name  string
	value json.RawMessage
}

// object reads a mapping and keeps its order.
func object(value json.RawMessage) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(value))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("a mapping is expected, not %s", value)
	}
	var out []member
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: fmt.Sprint(name)}
		if err := d.Decode(&m.value); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// keywords are those of docker-py 7's create. Dagster's launcher also fails on a name that is not
// here.
var keywords = map[string]keyword{
	"auto_remove":         field(func(s *spec) *bool { return &s.Remove }),
	"blkio_weight_device": field(func(s *spec) *[]*blkiodev.WeightDevice { return &s.Host.BlkioWeightDevice }),
	"blkio_weight":        field(func(s *spec) *uint16 { return &s.Host.BlkioWeight }),
	"cap_add":             field(func(s *spec) *[]string { return &s.Host.CapAdd }),
	"cap_drop":            field(func(s *spec) *[]string { return &s.Host.CapDrop }),
	"cgroup_parent":       word(func(s *spec) *string { return &s.Host.CgroupParent }),
	"cgroupns":            word(func(s *spec) *container.CgroupnsMode { return &s.Host.CgroupnsMode }),
	"cpu_count":           field(func(s *spec) *int64 { return &s.Host.CPUCount }),
	"cpu_percent":         field(func(s *spec) *int64 { return &s.Host.CPUPercent }),
	"cpu_period":          field(func(s *spec) *int64 { return &s.Host.CPUPeriod }),
	"cpu_quota":           field(func(s *spec) *int64 { return &s.Host.CPUQuota }),
	"cpu_rt_period":       field(func(s *spec) *int64 { return &s.Host.CPURealtimePeriod }),
	"cpu_rt_runtime":      field(func(s *spec) *int64 { return &s.Host.CPURealtimeRuntime }),
	"cpu_shares":          field(func(s *spec) *int64 { return &s.Host.CPUShares }),
	"cpuset_cpus":         word(func(s *spec) *string { return &s.Host.CpusetCpus }),
	"cpuset_mems":         word(func(s *spec) *string { return &s.Host.CpusetMems }),
	"device_cgroup_rules": field(func(s *spec) *[]string { return &s.Host.DeviceCgroupRules }),
	"device_requests":     deviceRequests,
	"device_read_bps":     field(func(s *spec) *[]*blkiodev.ThrottleDevice { return &s.Host.BlkioDeviceReadBps }),
	"device_read_iops":    field(func(s *spec) *[]*blkiodev.ThrottleDevice { return &s.Host.BlkioDeviceReadIOps }),
	"device_write_bps":    field(func(s *spec) *[]*blkiodev.ThrottleDevice { return &s.Host.BlkioDeviceWriteBps }),
	"device_write_iops":   field(func(s *spec) *[]*blkiodev.ThrottleDevice { return &s.Host.BlkioDeviceWriteIOps }),
	"devices":             devices,
	"dns":                 field(func(s *spec) *[]netip.Addr { return &s.Host.DNS }),
	"dns_opt":             field(func(s *spec) *[]string { return &s.Host.DNSOptions }),
	"dns_search":          field(func(s *spec) *[]string { return &s.Host.DNSSearch }),
	"domainname":          word(func(s *spec) *string { return &s.Config.Domainname }),
	"entrypoint":          entrypoint,
	"extra_hosts":         joined(func(s *spec) *[]string { return &s.Host.ExtraHosts }),
	"group_add":           words(func(s *spec) *[]string { return &s.Host.GroupAdd }),
	"healthcheck":         healthcheck,
	"hostname":            word(func(s *spec) *string { return &s.Config.Hostname }),
	"init":                field(func(s *spec) **bool { return &s.Host.Init }),
	"init_path":           removed("1.29", "set init: true"),
	"ipc_mode":            word(func(s *spec) *container.IpcMode { return &s.Host.IpcMode }),
	"isolation":           word(func(s *spec) *container.Isolation { return &s.Host.Isolation }),
	"labels":              textMap("=", func(s *spec) *map[string]string { return &s.Config.Labels }),
	"kernel_memory":       ignored, // since engine 23
	"links":               joined(func(s *spec) *[]string { return &s.Host.Links }),
	"log_config":          logConfig,
	"lxc_conf":            ignored, // by all existing engines
	"mac_address":         field(func(s *spec) *network.HardwareAddr { return &s.MAC }),
	"mem_limit":           size(func(s *spec) *int64 { return &s.Host.Memory }),
	"mem_reservation":     size(func(s *spec) *int64 { return &s.Host.MemoryReservation }),
	"mem_swappiness":      field(func(s *spec) **int64 { return &s.Host.MemorySwappiness }),
	"memswap_limit":       size(func(s *spec) *int64 { return &s.Host.MemorySwap }),
	"mounts":              field(func(s *spec) *[]mount.Mount { return &s.Host.Mounts }),
	"nano_cpus":           field(func(s *spec) *int64 { return &s.Host.NanoCPUs }),
	"network_disabled":    field(func(s *spec) *bool { return &s.Config.NetworkDisabled }),
	"networking_config":   field(func(s *spec) *map[string]*network.EndpointSettings { return &s.Endpoints }),
	"network_mode":        word(func(s *spec) *container.NetworkMode { return &s.Host.NetworkMode }),
	"oom_kill_disable":    field(func(s *spec) **bool { return &s.Host.OomKillDisable }),
	"oom_score_adj":       field(func(s *spec) *int { return &s.Host.OomScoreAdj }),
	"pid_mode":            word(func(s *spec) *container.PidMode { return &s.Host.PidMode }),
	"pids_limit":          field(func(s *spec) **int64 { return &s.Host.PidsLimit }),
	"platform":            platform,
	"ports":               ports,
	"privileged":          field(func(s *spec) *bool { return &s.Host.Privileged }),
	"publish_all_ports":   field(func(s *spec) *bool { return &s.Host.PublishAllPorts }),
	"read_only":           field(func(s *spec) *bool { return &s.Host.ReadonlyRootfs }),
	"restart_policy":      field(func(s *spec) *container.RestartPolicy { return &s.Host.RestartPolicy }),
	"runtime":             word(func(s *spec) *string { return &s.Host.Runtime }),
	"security_opt":        field(func(s *spec) *[]string { return &s.Host.SecurityOpt }),
	"shm_size":            size(func(s *spec) *int64 { return &s.Host.ShmSize }),
	"stdin_open":          field(func(s *spec) *bool { return &s.Config.OpenStdin }),
	"stop_signal":         word(func(s *spec) *string { return &s.Config.StopSignal }),
	"stop_timeout":        field(func(s *spec) **int { return &s.Stop }),
	"storage_opt":         textMap("=", func(s *spec) *map[string]string { return &s.Host.StorageOpt }),
	"sysctls":             textMap("=", func(s *spec) *map[string]string { return &s.Host.Sysctls }),
	"tmpfs":               textMap(":", func(s *spec) *map[string]string { return &s.Host.Tmpfs }),
	"tty":                 field(func(s *spec) *bool { return &s.Config.Tty }),
	"ulimits":             ulimits,
	"use_config_proxy":    field(func(s *spec) **bool { return &s.UseProxy }),
	"user":                word(func(s *spec) *string { return &s.Config.User }),
	"userns_mode":         word(func(s *spec) *container.UsernsMode { return &s.Host.UsernsMode }),
	"uts_mode":            word(func(s *spec) *container.UTSMode { return &s.Host.UTSMode }),
	"volume_driver":       word(func(s *spec) *string { return &s.Host.VolumeDriver }),
	"volumes":             volumes,
	"volumes_from":        volumesFrom,
	"version":             ignored, // docker-py sets its own
	"working_dir":         word(func(s *spec) *string { return &s.Config.WorkingDir }),
	"name":                ignored, // Slipway derives the name from the run, so that it cannot exist twice
	"detach":              ignored,
}

// ignored is a keyword that changes nothing.
func ignored(*spec, json.RawMessage) error { return nil }

// removed returns a keyword that docker-py refuses to send to current engines.
func removed(version, instead string) keyword {
	return func(*spec, json.RawMessage) error {
		return fmt.Errorf("engines have no such option since API %s; %s", version, instead)
	}
}

// elsewhere maps keywords to the settings that replace them.
var elsewhere = map[string]string{
	"image": "image", "environment": "env_vars", "network": "networks", "command": "none: it is Dagster's",
}

// apply applies keywords. An error names the keyword.
func (s *spec) apply(kwargs []member) (errs []*settingError) {
	for _, m := range kwargs {
		bad := func(err error) { errs = append(errs, &settingError{"container_kwargs." + m.name, err}) }
		set, ok := keywords[m.name]
		switch {
		case elsewhere[m.name] != "":
			bad(fmt.Errorf("not allowed here; the setting for it is %s", elsewhere[m.name]))
		case !ok:
			bad(errors.New("docker-py has no such option for containers"))
		case string(m.value) == "null":
		default:
			if err := set(s, m.value); err != nil {
				bad(err)
			}
		}
	}
	return errs
}

// entrypoint reads a list of words, or a command that docker-py splits with Python's shlex.split:
// quotes and backslashes as in a shell, no comments, no expansion.
func entrypoint(s *spec, value json.RawMessage) (err error) {
	if isList(value) {
		s.Config.Entrypoint, err = scalars(value)
		return err
	}
	text, err := scalar(value)
	if err != nil {
		return err
	}
	words, ok := shell.Split(text)
	if !ok {
		return fmt.Errorf("%q: a quotation is not closed, or a backslash is the last character", text)
	}
	s.Config.Entrypoint = words
	return nil
}

// platform reads os[/architecture[/variant]] or architecture[/variant], as in docker run
// --platform.
func platform(s *spec, value json.RawMessage) error {
	text, err := scalar(value)
	if err != nil || text == "" {
		return err
	}
	parts := strings.Split(text, "/")
	if !slices.Contains([]string{"linux", "windows", "freebsd", "darwin"}, parts[0]) {
		parts = slices.Insert(parts, 0, "linux")
	}
	if len(parts) > 3 || slices.Contains(parts, "") {
		return fmt.Errorf("%q is not a platform (for example: linux/arm64)", text)
	}
	members := map[string]string{}
	for i, part := range parts {
		members[[]string{"os", "architecture", "variant"}[i]] = part
	}
	if value, err = json.Marshal(members); err != nil {
		return err
	}
	return strict(value, &s.Create.Platform)
}

// volumesFrom reads a list of containers, or their names separated by commas.
func volumesFrom(s *spec, value json.RawMessage) (err error) {
	if text, terr := scalar(value); terr == nil {
		s.Host.VolumesFrom = strings.Split(text, ",")
		return nil
	}
	s.Host.VolumesFrom, err = scalars(value)
	return err
}

// respelled returns a mapping with its keys in the spelling of the engine's API. docker-py accepts
// both spellings.
func respelled(value json.RawMessage, names map[string]string) (json.RawMessage, error) {
	members, err := object(value)
	if err != nil {
		return nil, err
	}
	out := map[string]json.RawMessage{}
	for _, m := range members {
		if name, ok := names[m.name]; ok {
			m.name = name
		}
		out[m.name] = m.value
	}
	return json.Marshal(out)
}

func eachRespelled[T any](value json.RawMessage, names map[string]string) ([]T, error) {
	var raw []json.RawMessage
	if err := strict(value, &raw); err != nil {
		return nil, err
	}
	out := make([]T, len(raw))
	for i, r := range raw {
		text, err := respelled(r, names)
		if err != nil {
			return nil, err
		}
		if err := strict(text, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func ulimits(s *spec, value json.RawMessage) (err error) {
	s.Host.Ulimits, err = eachRespelled[*container.Ulimit](value,
		map[string]string{"name": "Name", "soft": "Soft", "hard": "Hard"})
	return err
}

func deviceRequests(s *spec, value json.RawMessage) (err error) {
	s.Host.DeviceRequests, err = eachRespelled[container.DeviceRequest](value, map[string]string{
		"driver": "Driver", "count": "Count", "device_ids": "DeviceIDs", "capabilities": "Capabilities",
		"options": "Options",
	})
	return err
}

func logConfig(s *spec, value json.RawMessage) error {
	text, err := respelled(value, map[string]string{"type": "Type", "config": "Config"})
	if err != nil {
		return err
	}
	return strict(text, &s.Host.LogConfig)
}

func healthcheck(s *spec, value json.RawMessage) error {
	names := map[string]string{"test": "Test", "interval": "Interval", "timeout": "Timeout", "retries": "Retries",
		"start_period": "StartPeriod"}
	members, err := object(value)
	if err != nil {
		return err
	}
	for i, m := range members { // a text is a shell command
		if names[m.name] == "Test" || m.name == "Test" {
			if text, err := scalar(m.value); err == nil {
				members[i].value, _ = json.Marshal([]string{"CMD-SHELL", text})
			}
		}
	}
	rebuilt := map[string]json.RawMessage{}
	for _, m := range members {
		rebuilt[m.name] = m.value
	}
	whole, err := json.Marshal(rebuilt)
	if err != nil {
		return err
	}
	if whole, err = respelled(whole, names); err != nil {
		return err
	}
	s.Config.Healthcheck = &container.HealthConfig{}
	return strict(whole, s.Config.Healthcheck)
}

// devices reads a list of HOST[:CONTAINER[:PERMISSIONS]], or of mappings in the engine's form.
func devices(s *spec, value json.RawMessage) error {
	var raw []json.RawMessage
	if err := strict(value, &raw); err != nil {
		return err
	}
	for _, r := range raw {
		var d container.DeviceMapping
		if text, err := scalar(r); err == nil {
			parts := strings.SplitN(text, ":", 3)
			d = container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
			if len(parts) > 1 {
				d.PathInContainer = parts[1]
			}
			if len(parts) > 2 {
				d.CgroupPermissions = parts[2]
			}
		} else if err := strict(r, &d); err != nil {
			return err
		}
		s.Host.Devices = append(s.Host.Devices, d)
	}
	return nil
}

// volumes reads a list of binds, or a mapping of a source to {bind, mode}.
func volumes(s *spec, value json.RawMessage) error {
	s.Config.Volumes = map[string]struct{}{}
	if isList(value) {
		list, err := scalars(value)
		s.Host.Binds = list
		for _, bind := range list {
			parts := strings.Split(bind, ":")
			inside := parts[0]
			if len(parts) > 1 && parts[1] != "ro" && parts[1] != "rw" {
				inside = parts[1]
			}
			s.Config.Volumes[inside] = struct{}{}
		}
		return err
	}
	sources, err := object(value)
	if err != nil {
		return err
	}
	for _, m := range sources {
		var to struct {
			Bind        string `json:"bind"`
			Mode        string `json:"mode"`
			RO          bool   `json:"ro"`
			Propagation string `json:"propagation"`
		}
		if text, err := scalar(m.value); err == nil {
			to.Bind = text
		} else if err := strict(m.value, &to); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if to.Bind == "" {
			return fmt.Errorf("%s: bind is required: the folder in the container", m.name)
		}
		if to.Mode == "" {
			to.Mode = map[bool]string{true: "ro", false: "rw"}[to.RO]
		}
		if to.Propagation != "" {
			to.Mode += "," + to.Propagation
		}
		s.Host.Binds = append(s.Host.Binds, m.name+":"+to.Bind+":"+to.Mode)
		s.Config.Volumes[to.Bind] = struct{}{}
	}
	return nil
}

// ports reads a mapping from a port of the container to one or several ports of the host. Each of
// these is a number, {HostIp, HostPort}, or null for any port.
func ports(s *spec, value json.RawMessage) error {
	members, err := object(value)
	if err != nil {
		return err
	}
	s.Config.ExposedPorts, s.Host.PortBindings = network.PortSet{}, network.PortMap{}
	for _, m := range members {
		port, err := network.ParsePort(m.name)
		if err != nil {
			return err
		}
		hosts := []json.RawMessage{m.value}
		if isList(m.value) {
			if err := strict(m.value, &hosts); err != nil {
				return err
			}
		}
		s.Config.ExposedPorts[port] = struct{}{}
		for _, h := range hosts {
			b, err := portBinding(h)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			s.Host.PortBindings[port] = append(s.Host.PortBindings[port], b)
		}
	}
	return nil
}

func portBinding(value json.RawMessage) (b network.PortBinding, err error) {
	if b.HostPort, err = scalar(value); err == nil {
		return b, nil
	}
	var at struct {
		HostIP   netip.Addr      `json:"HostIp"`
		HostPort json.RawMessage `json:"HostPort"`
	}
	if err := strict(value, &at); err != nil {
		return b, err
	}
	if at.HostPort == nil {
		return b, errors.New("HostPort is required")
	}
	b.HostIP = at.HostIP
	b.HostPort, err = scalar(at.HostPort)
	return b, err
}

// Keywords returns the names that container_kwargs may have.
func Keywords() []string { return slices.Sorted(maps.Keys(keywords)) }
