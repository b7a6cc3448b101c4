//go:build real

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/slipway-run/slipway/internal/dagster"
	"github.com/slipway-run/slipway/internal/webserver"
	"github.com/slipway-run/slipway/test/testenv"
)

// cluster is an instance on Postgres with a launcher "k8s" in a separate namespace. Its workers see
// the files of the test.
type cluster struct {
	*world
	api       *kubernetes.Clientset
	namespace string
	image     string
}

func newCluster(t *testing.T, config, more string) *cluster {
	t.Helper()
	kubeconfig, image := testenv.Kubernetes(t)
	testenv.DagsterBin(t)
	location := testenv.Postgres(t)
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	api, err := kubernetes.NewForConfig(access)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{world: newWorld(t, location, ""), api: api, namespace: "e2e-" + uuid.NewString()[:8], image: image}
	c.env = []string{
		"E2E_PG_URL=" + strings.Replace(location, "postgresql://", "postgresql+psycopg2://", 1),
		"PYTHONPATH=" + filepath.Join(testenv.Root(t), ".venvs/launchers"),
	}
	ctx := context.Background()
	if _, err := api.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.CoreV1().Namespaces().Delete(ctx, c.namespace, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	// Workers may create Jobs, because some run their steps in Jobs.
	_, err = api.RbacV1().RoleBindings(c.namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "workers"},
		RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "edit"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: c.namespace}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.write("dagster.yaml", parked+"storage: {postgres: {postgres_url: {env: E2E_PG_URL}}}\n")
	fates := filepath.Join(testenv.Root(t), "test", "fates")
	c.write("slipway.yaml", fmt.Sprintf(`
instance_id: %[1]s
terminate: {local_only: true}
queue: {max_concurrent_runs: 60}
default: k8s
%[7]s
launchers:
  k8s:
    kind: k8s
    python: {"*": python}
    step_executors: true
    allow: {images: ["*"]}
    config:
      load_incluster_config: false
      kubeconfig_file: %[2]s
      job_namespace: %[1]s
      job_image: %[3]s
      image_pull_policy: Never
      service_account_name: default
      env_vars: [E2E_PG_URL]
      patience: 5s
      run_k8s_config:
        pod_spec_config:
          host_network: true
          volumes: [{name: fates, host_path: {path: %[4]s}}, {name: home, host_path: {path: %[5]s}}]
        container_config:
          volume_mounts: [{name: fates, mount_path: %[4]s, read_only: true}, {name: home, mount_path: %[5]s}]
%[6]s
`, c.namespace, kubeconfig, image, fates, c.home, config, more))
	return c
}

// pod waits until a Job has a running pod, and returns the pod.
func (c *cluster) pod(job string) *corev1.Pod {
	c.t.Helper()
	var found *corev1.Pod
	testenv.Eventually(c.t, 2*time.Minute, func() (bool, string) {
		pods, err := c.api.CoreV1().Pods(c.namespace).List(c.t.Context(),
			metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job})
		if err != nil {
			return false, err.Error()
		}
		for i, pod := range pods.Items {
			if pod.Status.Phase == corev1.PodRunning {
				found = &pods.Items[i]
			}
		}
		return found != nil, fmt.Sprintf("Job %s has no pod that runs, of %d", job, len(pods.Items))
	})
	return found
}

// part stops or starts a part of the cluster for tests.
func part(t *testing.T, do, name string, more ...string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(testenv.Root(t), "hack/kubernetes"),
		append([]string{do, name}, more...)...).CombinedOutput()
	if err != nil {
		t.Errorf("hack/kubernetes %s %s: %v\n%s", do, name, err, out)
	}
}

// logs shows the log of the daemon if the test has failed.
func (c *cluster) logs(p **process) {
	if c.t.Failed() {
		c.t.Logf("the daemon's log:\n%s", (*p).output())
	}
}

func (c *cluster) servers(names ...string) *webserver.Server {
	c.t.Helper()
	servers := map[string]string{}
	for _, name := range names {
		servers[name], _ = c.codeServer(name)
	}
	server := c.serves(webserver.Options{Servers: servers})
	return server
}

// Real workers of Dagster in pods end as they should, and the log of each run says how.
func TestKubernetesFates(t *testing.T) {
	testenv.Kubernetes(t)
	testenv.Beside(t, testenv.Dagster)
	c := newCluster(t, "", `
monitoring:
  max_resume_run_attempts: 1
  deaths: [{causes: [oom, evicted], do: fail}, {causes: [exit], do: again, started: resume}]
routes: [{when: {tags: {fate: nowhere}}, to: k8s, set: {start_timeout: 10s}}]
`)
	server := c.servers("fates", "cluster")
	p := c.slipway()
	defer c.logs(&p)
	launch := func(location, job string, tags map[string]string, config map[string]any) string {
		t.Helper()
		id, err := server.Launch(t.Context(), webserver.Job{Location: location, Name: job, Tags: tags, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	raw := func(text string) map[string]string { return map[string]string{"dagster-k8s/config": text} }
	good := launch("fates",
		"light", map[string]string{
			"dagster-k8s/config": `{"pod_template_spec_metadata": {"annotations": {"of": "the tag"}}}`}, nil)
	bad := launch("fates", "fails", nil, nil)
	big := launch("cluster", "eats", map[string]string{"slipway/memory": "400Mi"}, nil)
	missing := launch("fates", "light", map[string]string{"slipway/image": "127.0.0.1:1/missing/nothing:1",
		"dagster-k8s/config": `{"container_config": {"image_pull_policy": "Always"}}`}, nil)
	never := launch("fates", "light", map[string]string{"slipway/image": "slipway.test/missing:1"}, nil)
	secret := launch("fates",
		"light", raw(`{"container_config": {"env_from": [{"secret_ref": {"name": "not-there"}}]}}`), nil)
	nowhere := launch("fates", "light", map[string]string{"fate": "nowhere",
		"dagster-k8s/config": `{"pod_spec_config": {"node_selector": {"disk": "none-has-it"}}}`}, nil)
	wrong := launch("fates", "light", raw(`{"pod_spec_config": {"node_selectors": {}}}`), nil)
	steps := launch("cluster", "in_steps", nil, nil)
	forever := waitsFor(filepath.Join(c.home, "never"))
	canceled := launch("fates", "waits", nil, forever.Config)
	released := filepath.Join(c.home, "released")
	restarted := launch("fates", "waits", nil, waitsFor(released).Config)
	evicted := launch("fates", "waits", nil, waitsFor(released).Config)
	deleted := launch("fates", "waits", nil, waitsFor(released).Config)
	killed := launch("fates", "waits", nil, waitsFor(released).Config)
	for _, id := range []string{canceled, restarted, evicted, deleted, killed} {
		c.status(p, id, dagster.Started)
	}
	c.terminate(server, canceled)
	// A worker that is asked to stop writes itself that its run was interrupted.
	pod := c.pod("dagster-run-" + evicted)
	err := c.api.PolicyV1().Evictions(c.namespace).Evict(t.Context(),
		&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: c.namespace}})
	if err != nil {
		t.Error(err)
	}
	if err := c.api.CoreV1().Pods(c.namespace).Delete(t.Context(), c.pod("dagster-run-"+deleted).Name,
		metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	// Pods are processes of this machine.
	if out, err := exec.Command("pkill", "-KILL", "-f", "execute_run.*"+killed).CombinedOutput(); err != nil {
		t.Errorf("pkill: %v\n%s", err, out)
	}
	c.pod("dagster-run-" + killed + "-1") // Dagster gives this name to the Job of a first resume
	c.ended(5*time.Minute, p, good, bad, big, missing, never, secret, nowhere, wrong, steps, canceled, evicted, deleted)
	p.stop() // workers continue while there is no daemon
	c.write("released", "")
	p = c.slipway()
	c.ended(2*time.Minute, p, restarted, killed)
	for _, f := range []struct {
		id     string
		want   dagster.Status
		starts int
		says   []string
	}{
		{good, dagster.Success, 1, []string{"[K8sRunLauncher] Creating Kubernetes run worker job",
			"dagster-run-" + good, "default: no rule matches"}},
		{bad, dagster.Failure, 1, nil},
		{big, dagster.Failure, 1, []string{"Cause oom", "ran out of memory"}},
		{missing, dagster.Failure, 0, []string{"Cause image_pull", "127.0.0.1:1/missing/nothing:1",
			"connection refused"}},
		{never, dagster.Failure, 0, []string{"Cause image_pull", "slipway.test/missing:1"}},
		{secret, dagster.Failure, 0, []string{`secret "not-there" not found`}},
		{nowhere, dagster.Failure, 0, []string{"Unschedulable", "didn't match Pod's node affinity/selector"}},
		{wrong, dagster.Failure, 0, []string{"pod_spec_config.node_selectors", "no such field in PodSpec"}},
		{steps, dagster.Success, 1, []string{"in Kubernetes job dagster-step-"}},
		{canceled, dagster.Canceled, 1, nil},
		{restarted, dagster.Success, 1, nil},
		{evicted, dagster.Failure, 1, []string{"Execution was interrupted unexpectedly"}},
		{deleted, dagster.Failure, 1, []string{"Execution was interrupted unexpectedly"}},
		{killed, dagster.Success, 1, []string{"Launching a new run worker to resume run"}},
	} {
		r, said := c.run(f.id), c.says(f.id)
		if r.Status != f.want {
			t.Errorf("%s is %s, want %s:\n%s", r.Job, r.Status, f.want, said)
		}
		if n := c.count(f.id, dagster.RunStart); n != f.starts {
			t.Errorf("%s has %d events PIPELINE_START, want %d:\n%s", r.Job, n, f.starts, said)
		}
		for _, text := range f.says {
			if !strings.Contains(said, text) {
				t.Errorf("%s: %q is missing in\n%s", r.Job, text, said)
			}
		}
		if events, err := server.Events(t.Context(), f.id); err != nil || len(events) == 0 {
			t.Errorf("the page of %s: %d events, %v", r.Job, len(events), err)
		}
	}
	job, err := c.api.BatchV1().Jobs(c.namespace).Get(t.Context(), "dagster-run-"+good, metav1.GetOptions{})
	if err != nil || job.Spec.Template.Annotations["of"] != "the tag" ||
		strings.Contains(strings.Join(job.Spec.Template.Spec.Containers[0].Args, " "), "slipway:slipway") {
		t.Errorf("the Job is %+v, %v", job, err)
	}
	stepJobs, err := c.api.BatchV1().Jobs(c.namespace).List(t.Context(),
		metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=step_worker"})
	if err != nil || len(stepJobs.Items) != 2 {
		t.Fatalf("there are %d Jobs of steps, want 2: %v", len(stepJobs.Items), err)
	}
	for _, step := range stepJobs.Items {
		if len(step.OwnerReferences) != 1 || step.OwnerReferences[0].Name != "dagster-run-"+steps {
			t.Errorf("Job %s of a step is owned by %v, want its run's", step.Name, step.OwnerReferences)
		}
	}
	p.stop()
}

// The API server is killed for a minute while 30 runs are running, and the agent of the node is
// stopped while others are running. No run fails, and none gets a second worker. The test breaks
// the cluster, so it runs alone.
func TestKubernetesOutages(t *testing.T) {
	testenv.Faults(t)
	if _, err := os.Stat(os.Getenv("SLIPWAY_KUBERNETES")); err != nil || os.Getenv("SLIPWAY_KUBERNETES") == "" {
		testenv.Missing(t, "kubernetes", "only a cluster of hack/kubernetes can be broken: run make test-targets")
	}
	c := newCluster(t, "", "")
	server := c.servers("fates")
	p := c.slipway()
	defer c.logs(&p)
	released := filepath.Join(c.home, "released")
	var ids []string
	for range 30 {
		id, err := server.Launch(t.Context(), waitsFor(released))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		testenv.Eventually(t, 5*time.Minute, func() (bool, string) {
			return c.run(id).Status == dagster.Started, p.output()
		})
	}
	part(t, "stop", "apiserver", "-KILL")
	began := time.Now()
	late, err := server.Launch(t.Context(), waitsFor(released)) // waits for the API server
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(20 * time.Second)
	c.write("released", "") // they end while no component can report it
	<-time.After(time.Minute - time.Since(began))
	part(t, "start", "apiserver")
	ids = append(ids, late)
	c.ended(4*time.Minute, p, ids...)
	c.exactly(1, dagster.Success, ids...)

	c.write("kubelet", "")
	released = filepath.Join(c.home, "released-too")
	var quiet []string
	for range 3 {
		id, err := server.Launch(t.Context(), waitsFor(released))
		if err != nil {
			t.Fatal(err)
		}
		quiet = append(quiet, id)
	}
	for _, id := range quiet {
		c.status(p, id, dagster.Started)
	}
	part(t, "stop", "kubelet")
	<-time.After(55 * time.Second) // longer than the cluster waits for a node
	c.write("released-too", "")
	<-time.After(5 * time.Second)
	part(t, "start", "kubelet")
	c.ended(4*time.Minute, p, quiet...)
	c.exactly(1, dagster.Success, quiet...)
	p.stop()
}

// The objects of the chart are applied to a cluster, beside an instance whose dagster.yaml is a
// stock one with K8sRunLauncher. A run goes through them. When the leading daemon is killed, the
// next run goes through the other one. The cluster has no DNS and no Services, so the test shows
// nothing about the Service, the NetworkPolicy and the ServiceMonitor. These are only rendered.
func TestKubernetesChart(t *testing.T) {
	kubeconfig, image := testenv.Kubernetes(t)
	testenv.Beside(t, testenv.Dagster)
	c := newCluster(t, "", "")
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(access.Host)
	if err != nil {
		t.Fatal(err)
	}
	reached := forward(t, server.Hostname(), c.location)
	root := testenv.Root(t)
	tag := "slipway.test/slipway:" + c.namespace
	run := func(command string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(context.Background(), command, args...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", command, args, err, out)
		}
	}
	ui := c.servers("fates") // creates the tables
	run("hack/image", tag)
	t.Cleanup(func() { docker(t, "docker", "rmi", "-f", tag) })
	run("sh", "-c", "docker save "+tag+" | hack/kubernetes load")
	fates := filepath.Join(root, "test", "fates")
	config := parked + fmt.Sprintf(`
storage: {postgres: {postgres_url: {env: E2E_PG_URL}}}
run_launcher:
  module: dagster_k8s
  class: K8sRunLauncher
  config:
    job_namespace: %s
    job_image: %s
    image_pull_policy: Never
    service_account_name: default
    instance_config_map: dagster-instance
    env_vars: [E2E_PG_URL]
    volumes: [{name: fates, hostPath: {path: %s}}]
    volume_mounts: [{name: fates, mountPath: %[3]s, read_only: true}]
`, c.namespace, image, fates)
	_, err = c.api.CoreV1().ConfigMaps(c.namespace).Create(t.Context(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "dagster-instance"},
			Data: map[string]string{"dagster.yaml": config}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	values, manifests := filepath.Join(t.TempDir(), "values.yaml"), filepath.Join(t.TempDir(), "manifests.yaml")
	if err := os.WriteFile(values, fmt.Appendf(nil, `
dagster: {postgresqlSecret: ""}
slipway: {instance_id: %s}
image: {repository: %[2]s, tag: %[3]s, pullPolicy: Never}
env: [{name: E2E_PG_URL, value: %[4]q}]
`, c.namespace, "slipway.test/slipway", c.namespace, reached), 0o600); err != nil {
		t.Fatal(err)
	}
	run("sh", "-c", fmt.Sprintf(
		"cd test/testbeds/helm && go run . -values %s -release slipway -namespace %s ../../../deploy/helm/slipway >%s",
		values, c.namespace, manifests))
	run("hack/kubernetes", "kubectl", "-n", c.namespace, "apply", "-f", manifests)
	names := func() (ready []string) {
		pods, err := c.api.CoreV1().Pods(c.namespace).List(t.Context(),
			metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=slipway"})
		if err != nil {
			t.Fatal(err)
		}
		for _, pod := range pods.Items {
			if len(pod.Status.ContainerStatuses) > 0 && pod.Status.ContainerStatuses[0].Ready &&
				pod.DeletionTimestamp == nil {
				ready = append(ready, pod.Name)
			}
		}
		return ready
	}
	said := func() string {
		out, err := exec.CommandContext(context.Background(), filepath.Join(root, "hack/kubernetes"), "kubectl",
			"-n", c.namespace, "logs", "--all-pods", "deployment/slipway").CombinedOutput()
		return fmt.Sprintf("%s %v", out, err)
	}
	testenv.Eventually(t, 2*time.Minute, func() (bool, string) { return len(names()) == 2, said() })

	launch := func() string {
		t.Helper()
		id, err := ui.Launch(t.Context(), webserver.Job{Location: "fates", Name: "light"})
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 3*time.Minute, func() (bool, string) {
			return c.run(id).Status.Finished(), c.says(id) + said()
		})
		if r := c.run(id); r.Status != dagster.Success || r.Launch == nil || r.Launch.Launcher != "k8s" {
			t.Errorf("run %s is %s by %+v:\n%s", id, r.Status, r.Launch, c.says(id))
		}
		return id
	}
	first := launch()
	if _, err := c.api.BatchV1().Jobs(c.namespace).Get(t.Context(), "dagster-run-"+first, metav1.GetOptions{}); err !=
		nil {
		t.Error(err)
	}
	for _, pod := range names() { // one after the other, so the leader is among them
		if err := c.api.CoreV1().Pods(c.namespace).Delete(t.Context(), pod,
			metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
			t.Error(err)
		}
		launch()
	}
}

// forward makes a Postgres server reachable at another address of this machine, and returns the URL
// for Dagster.
func forward(t *testing.T, host, location string) string {
	t.Helper()
	u, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // nothing waits for it
	to := u.Host
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			pass := func(to, from net.Conn) { _, _ = io.Copy(to, from); _, _ = to.Close(), from.Close() }
			go pass(out, in)
			go pass(in, out)
		}
	}()
	u.Host, u.Scheme = l.Addr().String(), "postgresql+psycopg2"
	return u.String()
}

// The stock daemon launches runs with Dagster's own K8sRunLauncher, and Slipway adopts them. One
// ends well. One is canceled in the UI by the stock launcher of the webserver. One is killed and
// fails with its cause. One in flight is handed back to the stock daemon, and so is one that
// Slipway itself launched.
func TestKubernetesTakeOver(t *testing.T) {
	kubeconfig, image := testenv.Kubernetes(t)
	testenv.Beside(t, testenv.Dagster)
	c := newCluster(t, "", "")
	fates := filepath.Join(testenv.Root(t), "test", "fates")
	config := fmt.Sprintf(`
storage: {postgres: {postgres_url: {env: E2E_PG_URL}}}
run_launcher:
  module: dagster_k8s
  class: K8sRunLauncher
  config:
    load_incluster_config: false
    kubeconfig_file: %s
    job_namespace: %s
    job_image: %s
    image_pull_policy: Never
    service_account_name: default
    instance_config_map: none
    env_vars: [E2E_PG_URL]
    run_k8s_config:
      pod_spec_config:
        host_network: true
        volumes: [{name: fates, host_path: {path: %s}}, {name: home, host_path: {path: %s}}]
      container_config:
        volume_mounts: [{name: fates, mount_path: %[4]s, read_only: true}, {name: home, mount_path: %[5]s}]
`, kubeconfig, c.namespace, image, fates, c.home)
	unparked := config + "run_monitoring: {enabled: false}\ntelemetry: {enabled: false}\n"
	c.write("dagster.yaml", unparked)
	c.write("slipway.yaml", "instance_id: "+c.namespace+"\n")
	server := c.servers("fates")
	daemon := func() *process {
		return c.stockDaemon()
	}
	launch := func(name string) string {
		t.Helper()
		id, err := server.Launch(t.Context(),
			webserver.Job{Location: "fates", Name: "waits", Config: waitsFor(filepath.Join(c.home, name)).Config})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	cancel := func(id string) {
		t.Helper()
		c.terminate(server, id)
	}
	stock := daemon()
	ids := map[string]string{}
	for _, name := range []string{"good", "canceled", "killed", "handed back"} {
		ids[name] = launch(name)
	}
	for _, id := range ids {
		c.status(stock, id, dagster.Started)
	}
	stock.stop()
	c.write("dagster.yaml", parked+config)
	p := c.slipway()
	defer c.logs(&p)
	for name, id := range ids {
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			r := c.run(id)
			return r.Launch != nil && r.Handle != "",
				fmt.Sprintf("%s was not adopted: %+v %v\n%s", name, r.Launch, r.Tags, p.output())
		})
	}
	ids["own"], ids["own, canceled"] = launch("own"), launch("own, canceled")
	c.status(p, ids["own"], dagster.Started)
	c.status(p, ids["own, canceled"], dagster.Started)
	c.write("good", "")
	cancel(ids["canceled"])
	cancel(ids["own, canceled"])
	if out, err := exec.Command("pkill", "-KILL", "-f", "execute_run.*"+ids["killed"]).CombinedOutput(); err != nil {
		t.Errorf("pkill: %v\n%s", err, out)
	}
	c.ended(2*time.Minute, p, ids["good"], ids["canceled"], ids["killed"], ids["own, canceled"])
	p.stop()
	c.write("dagster.yaml", unparked)
	stock = daemon()
	cancel(ids["handed back"])
	cancel(ids["own"])
	c.ended(2*time.Minute, stock, ids["handed back"], ids["own"])
	for name, want := range map[string]dagster.Status{
		"good": dagster.Success, "canceled": dagster.Canceled, "killed": dagster.Failure,
		"handed back": dagster.Canceled, "own": dagster.Canceled, "own, canceled": dagster.Canceled,
	} {
		if got := c.run(ids[name]).Status; got != want {
			t.Errorf("%s is %s, want %s:\n%s", name, got, want, c.says(ids[name]))
		}
	}
	noErrors(t, stock)
}
