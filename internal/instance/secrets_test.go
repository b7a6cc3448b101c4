package instance_test

import (
	"testing"

	"github.com/slipway-run/slipway/internal/instance"
)

func TestRefHasSecret(t *testing.T) {
	for text, want := range map[string]bool{
		"": false,
		"storage: {postgres: {postgres_url: " +
			"'postgresql://u:p@h/d'}}\n": true,
		"storage: {postgres: {postgres_url: " +
			"'postgresql://u:pa/ss#w?rd%@h:5432/d'}}\n": true,
		"storage: {postgres: {postgres_url: " +
			"'postgresql://u@h:5432/d?password=p'}}\n": true,
		"storage: {postgres: {postgres_url: " +
			"'postgresql://u@h:5432/d?sslmode=require'}}\n": false,
		"storage: {postgres: {postgres_url: {env: " +
			"PG}}}\n": false,
		"storage: {postgres: {postgres_db: {username: u, password: p, hostname: h, db_name: " +
			"d}}}\n": true,
		"storage: {postgres: {postgres_db: {username: u, password: {env: PG}, hostname: h, db_name: " +
			"d}}}\n": false,
		"storage: {postgres: {postgres_db: {username: u, hostname: h, db_name: d, params: {password: " +
			"p}}}}\n": true,
		"compute_logs: {module: dagster_azure.blob, class: C, config: {container: c, secret_key: " +
			"k}}\n": true,
		"compute_logs: {module: dagster_aws.s3, class: C, config: {bucket: b, prefix: " +
			"p}}\n": false,
		"compute_logs: {module: dagster_company, class: C, config: {bucket: " +
			"b}}\n": false,
		"compute_logs: {module: company.logs, class: C, config: {anything: " +
			"x}}\n": true,
		"compute_logs: {module: company.logs, class: C, config: {anything: {env: PG}, n: " +
			"1}}\n": false,
		"secrets: {custom: {module: company.vault, class: C, config: {address: " +
			"x}}}\n": true,
		"run_launcher: {module: dagster_docker, class: DockerRunLauncher, config: {env_vars: " +
			"[A_TOKEN=x]}}\n": true,
		"run_launcher: {module: dagster_docker, class: DockerRunLauncher, config: {env_vars: [A_TOKEN, " +
			"TZ=UTC]}}\n": false,
		"run_queue: {tag_concurrency_limits: [{key: team, value: data, limit: " +
			"1}]}\n": false,
		"python_logs: {dagster_handler_config: {handlers: {h: {class: company.Slack, token: " +
			"x}}}}\n": true,
		"python_logs: {dagster_handler_config: {handlers: {h: {class: logging.StreamHandler, stream: " +
			"ext://sys.stderr}}}}\n": false,
	} {
		in, err := instance.Load(home(t, text, "launchers: {local: {kind: process}}\n"), kinds,
			func(string) (string, bool) { return "postgresql://u:p@h/d", true })
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := in.RefHasSecret(); got != want {
			t.Errorf("RefHasSecret with %s = %v, want %v", text, got, want)
		}
	}
}
