// Package aci is an emulator of Azure Container Instances. It speaks the REST protocol of the
// resource provider, as the SDKs and azcore's pollers use it. Its container groups are real
// containers of a Docker engine, or processes if there is no engine.
//
// It is for tests and laptops. The behaviour of the real service is taken from its documentation,
// its SDK and recorded traffic. If these leave something open, [Switches] has both answers. Rules
// can cause faults ([Fault]). test/emulator/aci-emulator is the program.
package aci

import (
	"fmt"
	"log/slog"
	"time"
)

// Options are the settings of an emulator. The admin API can change only Settings.
type Options struct {
	Backend Backend
	// State is the folder with the groups, so that an emulator that is started again finds them.
	// Values that were sent as secret are not written.
	State string
	// Token is the bearer token that requests must carry; "" accepts any token.
	Token string
	// Files is the folder whose subfolders ACCOUNT/SHARE are used as Azure file shares.
	Files string
	// Git lets git of this machine clone the repositories of git volumes. Without it they are
	// refused.
	Git      bool
	Settings Settings
	Log      *slog.Logger
}

// Settings are the behaviour of the region.
type Settings struct {
	Timing   Timing   `json:"timing"`
	Quota    Quota    `json:"quota"`
	Limits   Limits   `json:"limits"`
	Switches Switches `json:"switches"`
	Sizes    Sizes    `json:"sizes"`
}

// Timing is how long the service takes for things. In JSON the times are in nanoseconds.
type Timing struct {
	Accept       time.Duration `json:"accept"`       // from PUT to Creating
	Pull         time.Duration `json:"pull"`         // in addition to a real pull
	Start        time.Duration `json:"start"`        // from the pulled image to the running container
	Delete       time.Duration `json:"delete"`       // from the stopped containers to 404
	StopGrace    time.Duration `json:"stop_grace"`   // between SIGTERM and SIGKILL
	Backoff      time.Duration `json:"backoff"`      // before a pull or a container is tried again
	Repair       time.Duration `json:"repair"`       // from an eviction or maintenance to the new start
	Provisioning time.Duration `json:"provisioning"` // time after which provisioning has failed
}

// Quota is what one subscription may have in one location.
type Quota struct {
	Groups    int     `json:"groups"`
	Cores     float64 `json:"cores"`
	SpotCores float64 `json:"spot_cores"`
}

// Limits are how many requests one subscription may make; 0: no limit.
type Limits struct {
	Writes5m int `json:"writes_5m"` // creations and deletions of groups within five minutes
	Writes1h int `json:"writes_1h"` // the same within an hour
	Reads1h  int `json:"reads_1h"`  // reads of any kind within an hour
}

// Sizes is the size of the largest group.
type Sizes struct {
	CPU      float64 `json:"cpu"`
	MemoryGB float64 `json:"memory_gb"`
}

// Switches choose between answers where the real service is not known, or differs from place to
// place. The zero value is the likelier answer.
type Switches struct {
	RestartUnchanged bool `json:"restart_unchanged"` // a PUT that changes nothing restarts a running group
	RefuseFinished   bool `json:"refuse_finished"`   // a PUT on a finished group is refused, not deployed as new
	ReplaceTags      bool `json:"replace_tags"`      // PATCH replaces all tags instead of merging them
	// RestartOnFailure starts a container that exits non-zero once more, also under Never.
	RestartOnFailure bool `json:"restart_on_failure"`
	// ForgetRestarts lets restartCount start at 0 again after a move, and drops previousState.
	ForgetRestarts  bool `json:"forget_restarts"`
	EndedCountCores bool `json:"ended_count_cores"` // ended groups hold their cores
	// DetailOOM makes detailStatus of a container out of memory OOMKilled instead of Error.
	DetailOOM bool `json:"detail_oom"`
	// LogsConflict answers 409 ContainerGroupDeploymentNotReady instead of 404 if logs are
	// requested too early.
	LogsConflict      bool   `json:"logs_conflict"`
	StopConflict      bool   `json:"stop_conflict"` // a group that is being created cannot be stopped: 409
	StoppedBadRequest bool   `json:"stopped_bad_request"`
	IfNoneMatch       bool   `json:"if_none_match"` // If-None-Match: * on PUT is honoured
	ThrottleTooMany   bool   `json:"throttle_too_many"`
	LRO               string `json:"lro"`           // async (default), body or location
	DeleteStatus      int    `json:"delete_status"` // 200 (default), 202 or 204
	CheckImage        bool   `json:"check_image"`   // the PUT refuses an image that does not exist
	SkipPrevious      bool   `json:"skip_previous"` // a restart shows in startTime only
	// DropGroupState leaves instanceView out of the containers of a stopped group. Otherwise it is
	// empty.
	DropGroupState  bool `json:"drop_view"`
	KeepStoppedLogs bool `json:"keep_stop_logs"` // the logs of a stopped group are available
}

// Flipped returns the switches in their other position, except SkipPrevious.
func Flipped() Switches {
	return Switches{
		RestartUnchanged: true, RefuseFinished: true, ReplaceTags: true, RestartOnFailure: true, ForgetRestarts: true,
		EndedCountCores: true, DetailOOM: true,
		LogsConflict: true, StopConflict: true, StoppedBadRequest: true, IfNoneMatch: true, ThrottleTooMany: true,
		LRO: "location", DeleteStatus: 202,
		CheckImage: true, DropGroupState: true, KeepStoppedLogs: true,
	}
}

// Preset returns settings by name: fast for tests, or real, with the times, quotas and limits that
// Azure documents or was seen to have.
func Preset(name string) (Settings, error) {
	sizes := Sizes{CPU: 4, MemoryGB: 16}
	switch name {
	case "fast":
		return Settings{
			Timing: Timing{StopGrace: 2 * time.Second, Backoff: 200 * time.Millisecond, Repair: 200 * time.Millisecond,
				Provisioning: 30 * time.Minute},
			Quota: Quota{Groups: 1000, Cores: 1000, SpotCores: 1000}, Sizes: sizes,
		}, nil
	case "real":
		return Settings{
			Timing: Timing{
				Accept: 4 * time.Second, Pull: 3 * time.Second, Start: 12 * time.Second, Delete: 5 * time.Second,
				StopGrace: 10 * time.Second,
				Backoff:   20 * time.Second, Repair: 30 * time.Minute, Provisioning: 30 * time.Minute,
			},
			Quota:  Quota{Groups: 100, Cores: 100, SpotCores: 10},
			Limits: Limits{Writes5m: 100, Writes1h: 300, Reads1h: 16500}, Sizes: sizes,
		}, nil
	}
	return Settings{}, fmt.Errorf("there is no preset %q; there are fast and real", name)
}
