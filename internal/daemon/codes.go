package daemon

// Code names what a finding is about. It stays the same from release to release, so that alerts can
// rely on it.
type Code string

// The codes. Package storage has more. docs/operating.md lists all of them.
const (
	CodeConfiguration  Code = "configuration"
	CodeDagsterYAML    Code = "dagster_yaml"
	CodeStorage        Code = "storage"
	CodeOtherInstance  Code = "other_instance"
	CodeRevision       Code = "revision"
	CodeClock          Code = "clock"
	CodeCoexist        Code = "coexist"
	CodeDequeuer       Code = "dequeuer"
	CodeSecondDequeuer Code = "second_dequeuer"
	CodeMonitor        Code = "monitor"
	CodeDagsterDaemon  Code = "dagster_daemon"
	CodeLeader         Code = "leader"
	CodeElsewhere      Code = "worker_elsewhere"
	CodeUnwatched      Code = "unwatched"
	CodeStatus         Code = "status"
	CodeTerminate      Code = "terminate"
	CodeLauncherConfig Code = "launcher_config"
	CodeLauncherSick   Code = "launcher_sick"
	CodeLauncher       Code = "launcher"
	CodePause          Code = "pause"
	CodeQueue          Code = "queue"
	CodeLimit          Code = "limit"
	CodeRunRefused     Code = "run_refused"
	CodeInterpreter    Code = "interpreter"
	CodeCodeServer     Code = "code_server"
)
