// Package aci is an emulator of Azure Container Instances: the REST protocol of the resource provider, as the SDKs and azcore's pollers speak
// it, with container groups that are real containers of a Docker engine, or processes where there is none.
//
// It is for tests and laptops. What the real service does is taken from its documentation, its SDK and recorded traffic; where that leaves
// something open, [Switches] has both answers. Faults can be asked for, by rules ([Fault]). cmd/aci-emulator is the program.
package aci

import (
	"fmt"
	"log/slog"
	"time"
)

// Options say how an emulator behaves. Those that the admin API can change are in Settings.
type Options struct {
	Backend Backend
	// State is the folder where groups are kept, so that an emulator that is started again finds them. Values that were sent as secret are not written.
	State string
	// Token is the bearer token that requests must carry; "" takes any.
	Token string
	// Files is the folder whose subfolders ACCOUNT/SHARE stand for Azure file shares.
	Files string
	// Git has volumes of git repositories cloned by this machine's git; else they are refused.
	Git      bool
	Settings Settings
	Log      *slog.Logger
}

// Settings are how the region behaves.
type Settings struct {
	Timing   Timing   `json:"timing"`
	Quota    Quota    `json:"quota"`
	Limits   Limits   `json:"limits"`
	Switches Switches `json:"switches"`
	Sizes    Sizes    `json:"sizes"`
}

// Timing is how long the service takes for things, in nanoseconds where it is JSON.
type Timing struct {
	Accept       time.Duration `json:"accept"`       // from PUT to Creating
	Pull         time.Duration `json:"pull"`         // besides a real pull
	Start        time.Duration `json:"start"`        // from the pulled image to the running container
	Delete       time.Duration `json:"delete"`       // from the stopped containers to 404
	StopGrace    time.Duration `json:"stop_grace"`   // between SIGTERM and SIGKILL
	Backoff      time.Duration `json:"backoff"`      // before a pull or a container is tried again
	Repair       time.Duration `json:"repair"`       // from an eviction or maintenance to the new start
	Provisioning time.Duration `json:"provisioning"` // after which provisioning has failed
}

// Quota is what one subscription may have in one location.
type Quota struct {
	Groups    int     `json:"groups"`
	Cores     float64 `json:"cores"`
	SpotCores float64 `json:"spot_cores"`
}

// Limits are requests for one subscription; 0 is no limit.
type Limits struct {
	Writes5m int `json:"writes_5m"` // creates and deletes of groups within five minutes
	Writes1h int `json:"writes_1h"` // within an hour
	Reads1h  int `json:"reads_1h"`  // of anything within an hour
}

// Sizes are the largest group.
type Sizes struct {
	CPU      float64 `json:"cpu"`
	MemoryGB float64 `json:"memory_gb"`
}

// Switches are what is not known of the real service, or differs from place to place. The zero value is the likelier answer.
type Switches struct {
	RestartUnchanged  bool   `json:"restart_unchanged"`  // a PUT that changes nothing restarts a running group
	RefuseFinished    bool   `json:"refuse_finished"`    // a PUT on a finished group is refused rather than deployed as new
	ReplaceTags       bool   `json:"replace_tags"`       // PATCH replaces all tags rather than to merge
	RestartOnFailure  bool   `json:"restart_on_failure"` // a container that exits non-zero is started once more, also under Never
	ForgetRestarts    bool   `json:"forget_restarts"`    // restartCount starts at 0 again after a move, and previousState is gone
	EndedCountCores   bool   `json:"ended_count_cores"`  // ended groups hold their cores
	DetailOOM         bool   `json:"detail_oom"`         // detailStatus of a container out of memory is OOMKilled rather than Error
	LogsConflict      bool   `json:"logs_conflict"`      // logs asked too early are 409 ContainerGroupDeploymentNotReady rather than 404
	StopConflict      bool   `json:"stop_conflict"`      // a group that is being made cannot be stopped: 409
	StoppedBadRequest bool   `json:"stopped_bad_request"`
	IfNoneMatch       bool   `json:"if_none_match"` // If-None-Match: * on PUT is honoured
	ThrottleTooMany   bool   `json:"throttle_too_many"`
	LRO               string `json:"lro"`            // async (default), body or location
	DeleteStatus      int    `json:"delete_status"`  // 200 (default), 202 or 204
	CheckImage        bool   `json:"check_image"`    // an image that is not there is refused by the PUT
	SkipPrevious      bool   `json:"skip_previous"`  // a restart shows in startTime only
	DropGroupState    bool   `json:"drop_view"`      // a stopped group has no containers' instanceView at all rather than an empty one
	KeepStoppedLogs   bool   `json:"keep_stop_logs"` // logs of a stopped group are there
}

// Flipped are all switches in their other position.
func Flipped() Switches {
	return Switches{
		RestartUnchanged: true, RefuseFinished: true, ReplaceTags: true, RestartOnFailure: true, ForgetRestarts: true, EndedCountCores: true, DetailOOM: true,
		LogsConflict: true, StopConflict: true, StoppedBadRequest: true, IfNoneMatch: true, ThrottleTooMany: true, LRO: "location", DeleteStatus: 202,
		CheckImage: true, DropGroupState: true, KeepStoppedLogs: true,
	}
}

// Preset gives the settings of a name: fast, for tests, or real, with the times, quotas and limits that Azure documents or was seen to have.
func Preset(name string) (Settings, error) {
	sizes := Sizes{CPU: 4, MemoryGB: 16}
	switch name {
	case "fast":
		return Settings{
			Timing: Timing{StopGrace: 2 * time.Second, Backoff: 200 * time.Millisecond, Repair: 200 * time.Millisecond, Provisioning: 30 * time.Minute},
			Quota:  Quota{Groups: 1000, Cores: 1000, SpotCores: 1000}, Sizes: sizes,
		}, nil
	case "real":
		return Settings{
			Timing: Timing{
				Accept: 4 * time.Second, Pull: 3 * time.Second, Start: 12 * time.Second, Delete: 5 * time.Second, StopGrace: 10 * time.Second,
				Backoff: 20 * time.Second, Repair: 30 * time.Minute, Provisioning: 30 * time.Minute,
			},
			Quota: Quota{Groups: 100, Cores: 100, SpotCores: 10}, Limits: Limits{Writes5m: 100, Writes1h: 300, Reads1h: 16500}, Sizes: sizes,
		}, nil
	}
	return Settings{}, fmt.Errorf("there is no preset %q; there are fast and real", name)
}
