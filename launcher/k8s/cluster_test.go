//go:build real

package k8s_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"
	authv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/k8s"
	"github.com/slipway-run/slipway/test/testenv"
)

// admin returns access to the tests' cluster with all rights.
func admin(t *testing.T) (*kubernetes.Clientset, *rest.Config, string) {
	t.Helper()
	kubeconfig, image := testenv.Kubernetes(t)
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	access.QPS, access.Burst = 200, 400
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		t.Fatal(err)
	}
	return client, access, image
}

func namespace(t *testing.T, client *kubernetes.Clientset) string {
	t.Helper()
	name := "test-" + uuid.NewString()[:8]
	ctx := context.Background()
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}},
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return name
}

func openAt(t *testing.T, access *rest.Config, settings map[string]any) *k8s.Launcher {
	t.Helper()
	v, err := config.FromMap(settings)
	if err != nil {
		t.Fatal(err)
	}
	l, err := k8s.OpenAt(v, access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func script(image, instance, text string) *launcher.Request {
	return &launcher.Request{
		ID: launcher.ID{Run: uuid.NewString(), Attempt: 1}, Token: "t", Instance: instance, Image: image,
		Command: []string{"sh", "-c", text}, Job: "test", Location: "test", At: time.Now(),
		Grace: 5 * time.Second,
	}
}

// until waits until a worker's health satisfies ok.
func until(t *testing.T, l *k8s.Launcher, h launcher.Handle, what string,
	ok func(launcher.Health) bool) launcher.Health {
	t.Helper()
	var got launcher.Health
	testenv.Eventually(t, 2*time.Minute, func() (bool, string) {
		var err error
		got, err = l.Health(t.Context(), h)
		return err == nil && ok(got), fmt.Sprintf("%s is not %s: %+v, %v", h, what, got, err)
	})
	return got
}

// asked records the requests of a client to an API server, in the terms of the server's rules.
type asked struct {
	next http.RoundTripper
	mu   sync.Mutex
	by   map[string]int
}

func (a *asked) RoundTrip(r *http.Request) (*http.Response, error) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	group := ""
	if parts[0] == "apis" {
		group = parts[1]
	}
	if i := slices.Index(parts, "namespaces"); i >= 0 && i+2 < len(parts) {
		rest := parts[i+2:]
		what, verb := rest[0], map[string]string{"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete",
			"PUT": "update"}[r.Method]
		if len(rest) == 3 {
			what += "/" + rest[2]
		}
		if r.Method == http.MethodGet && len(rest) == 1 {
			if verb = "list"; r.URL.Query().Get("watch") == "true" {
				verb = "watch"
			}
		}
		a.mu.Lock()
		a.by[strings.TrimPrefix(group+"/"+what+" "+verb, "/")]++
		a.mu.Unlock()
	}
	return a.next.RoundTrip(r)
}

// manifest returns a Kubernetes object as YAML, with the field names of its JSON.
func manifest(t *testing.T, object any) string {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var members any
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := errors.Join(e.Encode(members), e.Close()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// The role in deploy/kubernetes has exactly the permissions that the launcher uses: all its
// functions work with no others.
func TestRole(t *testing.T) {
	var rules []rbacv1.PolicyRule
	needs := map[string]bool{}
	for _, p := range k8s.Permissions() {
		rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{p.Group}, Resources: []string{p.Resource},
			Verbs: p.Verbs})
		for _, verb := range p.Verbs {
			needs[strings.TrimPrefix(p.Group+"/"+p.Resource+" "+verb, "/")] = true
		}
	}
	role := rbacv1.Role{TypeMeta: metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "Role"},
		ObjectMeta: metav1.ObjectMeta{Name: "slipway"}, Rules: rules}
	const head = "# What the daemon may do in a namespace of its workers; made from launcher/k8s, whose tests run " +
		"with nothing else.\n"
	testenv.GeneratedFile(t, filepath.Join(testenv.Root(t), "deploy/kubernetes/role.yaml"), head+manifest(t, role))
	testenv.GeneratedFile(t, filepath.Join(testenv.Root(t), "deploy/helm/slipway/role-rules.yaml"),
		head+manifest(t, map[string]any{"rules": rules}))

	client, access, image := admin(t)
	space, ctx := namespace(t, client), t.Context()
	role.Namespace = space
	if _, err := client.RbacV1().Roles(space).Create(ctx, &role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().ServiceAccounts(space).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "slipway"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := client.RbacV1().RoleBindings(space).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "slipway"},
		RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: "slipway"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: "slipway", Namespace: space}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := client.CoreV1().ServiceAccounts(space).CreateToken(ctx, "slipway", &authv1.TokenRequest{},
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	record := &asked{by: map[string]int{}}
	narrow := &rest.Config{Host: access.Host, BearerToken: token.Status.Token, TLSClientConfig: access.TLSClientConfig,
		WrapTransport: func(next http.RoundTripper) http.RoundTripper {
			record.next = next
			return record
		}}
	settings := map[string]any{"job_namespace": space, "image_pull_policy": "Never", "patience": "100ms", "qps": 200,
		"burst": 400}
	l := openAt(t, narrow, settings)
	for _, f := range l.Check(ctx) {
		if !f.OK || strings.Contains(f.What, "role.yaml") {
			t.Errorf("check: %+v", f)
		}
	}
	launch := func(req *launcher.Request) launcher.Handle {
		t.Helper()
		got, err := l.Launch(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return got.Handle
	}
	ended := func(h launcher.Health) bool { return h.Status.Ended() }
	running := func(h launcher.Health) bool { return h.Status == launcher.Running }
	good := script(image, "role", "echo out")
	good.Env = []launcher.Env{{Name: "HIDDEN", Value: "x", Secret: true}}
	if err := l.Try(ctx, good); err != nil {
		t.Errorf("Try = %v", err)
	}
	wrong := script(image, "role", "x")
	wrong.Overrides = []launcher.Override{{Source: "tag dagster-k8s/config",
		JSON: []byte(`{"pod_spec_config": {"restart_policy": "Always"}}`)}}
	if err := l.Try(ctx, wrong); !errors.Is(err, launcher.ErrInvalid) ||
		!strings.Contains(err.Error(), "restartPolicy") {
		t.Errorf("Try of a Job that the API refuses = %v, want ErrInvalid", err)
	}
	h := launch(good)
	launch(good)
	until(t, l, h, "ended", ended)
	if _, err := l.Describe(ctx, h, true); err != nil {
		t.Error(err)
	}
	if err := l.Remove(ctx, h); err != nil {
		t.Error(err)
	}
	watching, stop := context.WithCancel(ctx)
	var done sync.WaitGroup
	synced := make(chan struct{})
	done.Go(func() {
		for w, err := range l.Watch(watching) {
			if err != nil {
				t.Errorf("Watch: %v", err)
			}
			if w.Synced {
				close(synced)
			}
		}
	})
	<-synced
	stubborn := "trap '' TERM; while :; do sleep 0.1; done"
	slow, fast, bad := launch(script(image, "role", "sleep 1000")), launch(script(image, "role", stubborn)),
		launch(script("slipway.test/none:1", "role", "x"))
	run := script(image, "role", "sleep 1000")
	owner := launch(run)
	until(t, l, slow, "running", running)
	until(t, l, fast, "running", running)
	until(t, l, owner, "running", running)
	step := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "dagster-step-1",
			Labels: map[string]string{"dagster/run-id": run.ID.Run, "app.kubernetes.io/component": "step_worker"}},
		Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{Name: "step", Image: image, ImagePullPolicy: corev1.PullNever,
				Command: []string{"sleep", "1000"}}},
		}}},
	}
	if _, err := client.BatchV1().Jobs(space).Create(ctx, step, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		got, err := client.BatchV1().Jobs(space).Get(ctx, step.Name, metav1.GetOptions{})
		return err == nil && len(got.OwnerReferences) == 1 && got.OwnerReferences[0].Name == "dagster-run-"+run.ID.Run,
			fmt.Sprintf("the step's Job is owned by %v, %v", got.OwnerReferences, err)
	})
	for h, grace := range map[launcher.Handle]time.Duration{slow: 5 * time.Second, fast: 0, owner: 0} {
		if ok, err := l.Terminate(ctx, h, grace); err != nil || !ok {
			t.Errorf("Terminate = %v, %v", ok, err)
		}
	}
	for h, cause := range map[launcher.Handle]launcher.Cause{slow: launcher.CauseCanceled, fast: launcher.CauseCanceled,
		owner: launcher.CauseCanceled, bad: launcher.CauseImagePull} {
		if got := until(t, l, h, "ended", ended); got.Cause != cause {
			t.Errorf("%s ended as %+v, want cause %s", h, got, cause)
		}
	}
	if err := l.Remove(ctx, owner); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, time.Minute, func() (bool, string) { // with its run
		got, err := client.BatchV1().Jobs(space).List(ctx,
			metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=step_worker"})
		return err == nil && len(got.Items) == 0, fmt.Sprintf("the step's Job is there still: %v", err)
	})
	for _, err := range l.List(ctx, launcher.Filter{Instance: "role"}) {
		if err != nil {
			t.Error(err)
		}
	}
	stop()
	done.Wait()
	record.mu.Lock()
	defer record.mu.Unlock()
	for _, right := range slices.Sorted(maps.Keys(needs)) {
		if record.by[right] == 0 {
			t.Errorf("the role has the right %q, which nothing used", right)
		}
	}
	for right := range record.by {
		if !needs[right] && !strings.HasPrefix(right, "serviceaccounts ") && !strings.HasPrefix(right, "configmaps ") {
			t.Errorf("%q was asked, which the role does not have", right)
		}
	}
}

// A real API server checks the quota before the name. It names no Job if the rights are missing.
func TestRefusals(t *testing.T) {
	client, access, image := admin(t)
	space, other := namespace(t, client), namespace(t, client)
	ctx := t.Context()
	_, err := client.CoreV1().ResourceQuotas(space).Create(ctx, &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "jobs"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/jobs.batch": resource.MustParse("1")}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := openAt(t, access, map[string]any{"job_namespace": space, "image_pull_policy": "Never"})
	req := script(image, "refusals", "sleep 1000")
	var first launcher.Launched
	testenv.Eventually(t, time.Minute, func() (bool, string) { // the quota has no status at first
		var err error
		if first, err = l.Launch(ctx, req); err != nil && !errors.Is(err, launcher.ErrTransient) {
			t.Fatalf("Launch = %v", err)
		}
		quota, err2 := client.CoreV1().ResourceQuotas(space).Get(ctx, "jobs", metav1.GetOptions{})
		used := quota.Status.Used["count/jobs.batch"]
		return err == nil && err2 == nil && used.Value() == 1, fmt.Sprint(err, err2, used.String())
	})
	if again, err := l.Launch(ctx, req); err != nil || again.Handle != first.Handle {
		t.Errorf("the same Launch with the quota used up = %+v, %v, want %s", again, err, first.Handle)
	}
	if _, err := l.Launch(ctx, script(image, "refusals", "x")); !errors.Is(err, launcher.ErrCapacity) ||
		launcher.CauseOf(err) != launcher.CauseQuota {
		t.Errorf("another Launch with the quota used up = %v, want ErrCapacity", err)
	}
	narrow := rest.CopyConfig(access)
	narrow.Impersonate.UserName = "stranger"
	elsewhere := script(image, "refusals", "x")
	elsewhere.Overrides = []launcher.Override{{Source: "container_context.k8s",
		JSON: fmt.Appendf(nil, `{"namespace": %q}`, other)}}
	powerless := openAt(t, narrow, map[string]any{"job_namespace": space})
	for what, c := range map[string]struct {
		l    *k8s.Launcher
		req  *launcher.Request
		want error
		says string
	}{
		"no right in job_namespace": {powerless, script(image, "refusals", "x"), launcher.ErrDenied,
			`User "stranger" cannot create resource "jobs"`},
		"no right in a code location's namespace": {powerless, elsewhere, launcher.ErrInvalid,
			`User "stranger" cannot create resource "jobs"`},
		"a code location's namespace that is not": {l, func() *launcher.Request {
			r := script(image, "refusals", "x")
			r.Overrides = []launcher.Override{{Source: "container_context.k8s",
				JSON: []byte(`{"namespace": "not-there"}`)}}
			return r
		}(), launcher.ErrInvalid, `namespaces "not-there" not found`},
	} {
		if _, err := c.l.Launch(ctx, c.req); !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: Launch = %v, want %v, %s", what, err, c.want, c.says)
		}
	}
	health, err := powerless.Health(ctx, launcher.Handle(other+"/dagster-run-"+elsewhere.ID.Run))
	if err != nil || health.Status != launcher.Unknown || !strings.Contains(health.Message, "cannot get resource") {
		t.Errorf("Health in a code location's namespace without rights = %+v, %v, want Unknown", health, err)
	}
}

// breaking passes requests on to an API server, and breaks watches.
type breaking struct {
	proxy *httputil.ReverseProxy
	mu    sync.Mutex
	gone  int // number of further watches that are answered with 410 Gone
	live  map[int]context.CancelFunc
	next  int
	seen  int
	down  bool // watches are refused
	asked int  // requests other than watches
}

func (b *breaking) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	if r.URL.Query().Get("watch") != "true" {
		b.asked++
		b.mu.Unlock()
		b.proxy.ServeHTTP(w, r)
		return
	}
	if b.down {
		b.mu.Unlock()
		http.Error(w,
			`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"InternalError","message":"down",`+
				`"code":500}`,
			http.StatusInternalServerError)
		return
	}
	if b.gone > 0 {
		b.gone--
		b.mu.Unlock()
		http.Error(w,
			`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","message":"too old resource `+
				`version","code":410}`, http.StatusGone)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	b.next++
	id := b.next
	b.live[id], b.seen = cancel, b.seen+1
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.live, id)
		b.mu.Unlock()
		cancel()
		_ = recover() // the proxy panics when a stream breaks
	}()
	b.proxy.ServeHTTP(w, r.WithContext(ctx))
}

// breaks ends all watches. If down is true it refuses new ones.
func (b *breaking) breaks(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
	for _, cancel := range b.live {
		cancel()
	}
}

// asks returns how many requests Health needs.
func (b *breaking) asks(t *testing.T, l *k8s.Launcher, h launcher.Handle) int {
	t.Helper()
	b.mu.Lock()
	before := b.asked
	b.mu.Unlock()
	if got, err := l.Health(t.Context(), h); err != nil || got.Status != launcher.Running {
		t.Errorf("Health = %+v, %v, want Running", got, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked - before
}

// expire ends all watches, and answers the next ones that they are too old.
func (b *breaking) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = 3
	for _, cancel := range b.live {
		cancel()
	}
}

// A watch that breaks and has expired when it comes back misses nothing. Only while it is broken
// the API server itself is asked.
func TestWatchExpires(t *testing.T) {
	client, access, image := admin(t)
	space := namespace(t, client)
	u, err := url.Parse(access.Host)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(access)
	if err != nil {
		t.Fatal(err)
	}
	b := &breaking{live: map[int]context.CancelFunc{}, proxy: &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) },
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {},
	}}
	server := httptest.NewServer(b)
	defer server.Close()
	l := openAt(t, &rest.Config{Host: server.URL},
		map[string]any{"job_namespace": space, "image_pull_policy": "Never", "own_step_jobs": false})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ends, synced := make(chan launcher.ID, 100), make(chan struct{})
	go func() {
		defer close(ends)
		for w, err := range l.Watch(ctx) {
			switch {
			case err != nil:
				t.Errorf("Watch: %v", err)
			case w.Synced:
				close(synced)
			case w.Health.Status.Ended():
				ends <- w.ID
			}
		}
	}()
	<-synced
	for range 3 {
		req := script(image, "watched", "sleep 1")
		got, err := l.Launch(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		b.expire()
		for deadline := time.After(time.Minute); ; {
			select {
			case id := <-ends:
				if id == req.ID {
					goto next
				}
			case <-deadline:
				t.Fatalf("the end of %s was not seen", got.Handle)
			}
		}
	next:
	}
	live, err := l.Launch(ctx, script(image, "watched", "sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	until(t, l, live.Handle, "running", func(h launcher.Health) bool { return h.Status == launcher.Running })
	quiet := func(want bool, what string) {
		t.Helper()
		testenv.Eventually(t, time.Minute, func() (bool, string) {
			return (b.asks(t, l, live.Handle) == 0) == want, what
		})
	}
	quiet(true, "a worker that is watched is asked for")
	b.breaks(true)
	quiet(false, "a broken watch is relied on")
	b.breaks(false)
	quiet(true, "a watch that has come back is not relied on")
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen < 4 || b.gone > 0 {
		t.Errorf("%d watches, %d were not told that they had expired: this test shows nothing", b.seen, b.gone)
	}
}
