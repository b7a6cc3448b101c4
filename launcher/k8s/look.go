package k8s

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/slipway-run/slipway/launcher"
)

// adopted is the prefix of the handle of a run whose Job Dagster's own launcher made.
const adopted = "adopted/"

// Adopt implements [launcher.Adopter]. K8sRunLauncher leaves the image on the run, and the run's ID
// on the Job.
func (l *Launcher) Adopt(f launcher.Foreign) (launcher.Handle, bool) {
	if f.Tags["dagster/image"] == "" || (launcher.ID{Run: f.Run, Attempt: 1}).Check() != nil {
		return "", false
	}
	return launcher.Handle(adopted + f.Run), true
}

// find returns the Job of a handle and its pods: from the watches, or, if fresh, from the API
// server. The error is [launcher.ErrNotFound] if there is no such Job.
func (l *Launcher) find(ctx context.Context, h launcher.Handle, fresh bool) (*batchv1.Job, []*corev1.Pod, error) {
	if run, ok := strings.CutPrefix(string(h), adopted); ok {
		return l.findAdopted(ctx, run)
	}
	namespace, name, ok := strings.Cut(string(h), "/")
	if !ok || !strings.HasPrefix(name, "dagster-run-") || strings.Contains(name, "/") {
		return nil, nil, fmt.Errorf("%w: %q is not a handle of this launcher", launcher.ErrNotFound, h)
	}
	l.informers.knows(namespace)
	if !fresh {
		if job, pods, ok := l.informers.view(namespace, name); ok && (len(pods) > 0 || !finished(job)) {
			return job, pods, nil
		}
	}
	job, err := l.client.BatchV1().Jobs(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil, fmt.Errorf("%w: Job %s", launcher.ErrNotFound, h)
	}
	if err != nil {
		return nil, nil, l.askedIn(namespace, err)
	}
	if w, ok := workerOf(job); !ok {
		return nil, nil, fmt.Errorf("%w: Job %s is not of Slipway (run %q)", launcher.ErrNotFound, h, w.ID.Run)
	}
	pods, err := l.podsOf(ctx, job)
	return job, pods, err
}

func (l *Launcher) podsOf(ctx context.Context, job *batchv1.Job) ([]*corev1.Pod, error) {
	list, err := l.client.CoreV1().Pods(job.Namespace).List(ctx,
		metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job.Name})
	if err != nil {
		return nil, l.askedIn(job.Namespace, err)
	}
	var pods []*corev1.Pod
	for i := range list.Items {
		if metav1.IsControlledBy(&list.Items[i], job) {
			pods = append(pods, &list.Items[i])
		}
	}
	return pods, nil
}

// findAdopted finds the newest Job that Dagster's own launcher made for a run.
func (l *Launcher) findAdopted(ctx context.Context, run string) (*batchv1.Job, []*corev1.Pod, error) {
	var found []batchv1.Job
	for _, namespace := range l.informers.namespaces() {
		list, err := l.client.BatchV1().Jobs(namespace).List(ctx,
			metav1.ListOptions{LabelSelector: dagsterRunLabel + "=" + labelText(run) + ",!" + instanceLabel + "," +
				componentLabel + "=" + runWorker})
		if err != nil {
			return nil, nil, asked(err)
		}
		for _, job := range list.Items {
			if strings.HasPrefix(job.Name, "dagster-run-"+run) {
				found = append(found, job)
			}
		}
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("%w: no Job of run %s", launcher.ErrNotFound, run)
	}
	job := slices.MaxFunc(found, func(a, b batchv1.Job) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	pods, err := l.podsOf(ctx, &job)
	return &job, pods, err
}

// Health implements [launcher.Launcher].
func (l *Launcher) Health(ctx context.Context, h launcher.Handle) (launcher.Health, error) {
	job, pods, err := l.find(ctx, h, false)
	if errors.Is(err, launcher.ErrNotFound) {
		return launcher.Health{Status: launcher.NotFound, Message: "there is no such Job"}, nil
	}
	if errors.Is(err, launcher.ErrInvalid) { // concerns only this worker: HealthOf still answers for the others
		return launcher.Health{Status: launcher.Unknown,
			Message: strings.TrimPrefix(err.Error(), launcher.ErrInvalid.Error()+": ")}, nil
	}
	if err != nil {
		return launcher.Health{}, err
	}
	return l.healthOf(ctx, job, pods), nil
}

// HealthOf implements [launcher.Batcher].
func (l *Launcher) HealthOf(ctx context.Context, hs []launcher.Handle) ([]launcher.Health, error) {
	return launcher.HealthOfEach(ctx, l, hs, atOnce)
}

// atOnce is the number of workers that are observed at the same time.
const atOnce = 8

// tailLines is the number of last lines in the health of an ended worker.
const tailLines = 20

// healthOf returns the health of a worker. It adds the last lines of a worker that failed, and the
// events of one that starts slowly. It gives up a worker that can never begin.
func (l *Launcher) healthOf(ctx context.Context, job *batchv1.Job, pods []*corev1.Pod) launcher.Health {
	now, key := time.Now(), job.Namespace+"/"+job.Name
	h, given, since := Health(job, pods, now)
	switch {
	case h.Status == launcher.Failed:
		h.Tail = l.tail(ctx, job, newest(pods))
	case given != nil && !abandoned(job):
		if left := l.config.Patience - now.Sub(since); left > 0 {
			l.informers.later(key, left)
		} else if err := l.giveUp(ctx, job, given); err != nil { // the health is known nevertheless
			l.log.WarnContext(ctx, "a Job could not be given up; trying again", "job", key, "err", err)
			l.informers.later(key, giveUpAgain)
		}
	case h.Status == launcher.Starting && h.Message == "":
		l.slow(ctx, &h, job, newest(pods), now)
	}
	return h
}

// giveUpAgain is the pause between two tries to give up a Job.
const giveUpAgain = 10 * time.Second

// tail returns the last lines of an ended worker. They are read once.
func (l *Launcher) tail(ctx context.Context, job *batchv1.Job, pod *corev1.Pod) []string {
	if pod == nil || containerStatus(pod, mainContainer(job)).ContainerID == "" {
		return nil
	}
	key := string(pod.UID)
	l.informers.mu.Lock()
	lines, known := l.informers.tails[key]
	l.informers.mu.Unlock()
	if known {
		return lines
	}
	lines, err := l.lines(ctx, job, pod, tailLines)
	if err != nil {
		return nil // there may be none
	}
	l.informers.mu.Lock()
	defer l.informers.mu.Unlock()
	if len(l.informers.tails) > 1000 {
		clear(l.informers.tails)
	}
	l.informers.tails[key] = lines
	return lines
}

// detail is what the events reported about a worker that starts slowly.
type detail struct {
	at      time.Time
	phase   launcher.Phase
	message string
	cause   launcher.Cause
}

// Events are read when a worker takes longer than slowAfter to start, then at twice its age, and so
// on. Over all workers they are read at most eventsPerSecond times a second. They are only for
// people: many workers that wait for a busy node must not load the cluster.
const (
	slowAfter       = 5 * time.Second
	eventsPerSecond = 1
)

// slow adds the events of a worker that takes long to start to its health.
func (l *Launcher) slow(ctx context.Context, h *launcher.Health, job *batchv1.Job, pod *corev1.Pod, now time.Time) {
	uid, since := string(job.UID), job.CreationTimestamp.Time
	if pod != nil {
		uid, since = string(pod.UID), pod.CreationTimestamp.Time
	}
	l.informers.mu.Lock()
	d := l.informers.details[uid]
	l.informers.mu.Unlock()
	due := since.Add(slowAfter)
	if !d.at.IsZero() {
		due = d.at.Add(d.at.Sub(since))
	}
	if left := due.Sub(now); left > 0 {
		l.informers.later(job.Namespace+"/"+job.Name, left)
	} else if l.informers.asking.AllowN(now, 1) {
		events, err := l.events(ctx, job.Namespace, uid)
		if err != nil {
			return // they are only for people
		}
		d = detail{at: now, phase: h.Phase}
		for _, e := range events {
			switch {
			case e.Reason == "Pulling":
				d.phase = launcher.Pulling
			case e.Reason == "Pulled":
				d.phase = launcher.Pulled
			case e.Type == corev1.EventTypeWarning:
				d.message = e.Reason + ": " + e.Message
				if strings.Contains(e.Message, "exceeded quota") {
					d.cause = launcher.CauseQuota
				}
			}
		}
		l.informers.mu.Lock()
		if len(l.informers.details) > 1000 {
			clear(l.informers.details)
		}
		l.informers.details[uid] = d
		l.informers.mu.Unlock()
	}
	if h.Message, h.Cause = d.message, d.cause; d.phase != "" {
		h.Phase = d.phase
	}
}

// events returns the events of one object, oldest first.
func (l *Launcher) events(ctx context.Context, namespace, uid string) ([]corev1.Event, error) {
	list, err := l.client.CoreV1().Events(namespace).List(ctx,
		metav1.ListOptions{FieldSelector: "involvedObject.uid=" + uid, Limit: 100})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list.Items, func(a, b corev1.Event) int { return when(a).Compare(when(b)) })
	return list.Items, nil
}

// Remove implements [launcher.Remover].
func (l *Launcher) Remove(ctx context.Context, h launcher.Handle) error {
	job, pods, err := l.find(ctx, h, false)
	if errors.Is(err, launcher.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if got, _, _ := Health(job, pods, time.Now()); !got.Status.Ended() {
		return fmt.Errorf("kubernetes: the worker of Job %s/%s still runs", job.Namespace, job.Name)
	}
	background := metav1.DeletePropagationBackground
	err = l.client.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name,
		metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &job.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return l.askedIn(job.Namespace, err)
	}
	return nil
}

// Logs implements [launcher.LogReader]. If it follows a worker that has not begun, it waits for the
// worker.
func (l *Launcher) Logs(ctx context.Context, h launcher.Handle, o launcher.LogOptions) (io.ReadCloser, error) {
	for {
		job, pods, err := l.find(ctx, h, false)
		if err != nil {
			return nil, err
		}
		pod := newest(pods)
		err = fmt.Errorf("%w: Job %s has no pod, or its pod is gone", launcher.ErrNotFound, h)
		if pod != nil {
			var r io.ReadCloser
			if r, err = l.stream(ctx, job, pod, o); err == nil {
				return r, nil
			}
		}
		if health, _, _ := Health(job, pods, time.Now()); !o.Follow || health.Status != launcher.Starting ||
			!errors.Is(err, launcher.ErrNotFound) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(followEvery):
		}
	}
}

// followEvery is the pause between looks at a worker that has no output yet.
const followEvery = 200 * time.Millisecond

func (l *Launcher) stream(ctx context.Context, job *batchv1.Job, pod *corev1.Pod,
	o launcher.LogOptions) (io.ReadCloser, error) {
	options := &corev1.PodLogOptions{Container: mainContainer(job), Follow: o.Follow}
	if o.Tail > 0 {
		n := int64(o.Tail)
		options.TailLines = &n
	}
	if c := containerStatus(pod, mainContainer(job)); c.State.Waiting != nil && c.RestartCount > 0 {
		options.Previous = true
	}
	r, err := l.client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).Stream(ctx)
	if apierrors.IsNotFound(err) || apierrors.IsBadRequest(err) { // the container waits to start, or is gone
		return nil, fmt.Errorf("%w: kubernetes: %w", launcher.ErrNotFound, err)
	}
	if err != nil {
		return nil, asked(err)
	}
	return r, nil
}

func (l *Launcher) lines(ctx context.Context, job *batchv1.Job, pod *corev1.Pod, n int) ([]string, error) {
	r, err := l.stream(ctx, job, pod, launcher.LogOptions{Tail: n})
	if err != nil {
		return nil, err
	}
	var lines []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	return lines, errors.Join(s.Err(), r.Close())
}

// Describe implements [launcher.Describer]. The object contains JSON data, and a text in the words
// of Dagster's K8sRunLauncher.
func (l *Launcher) Describe(ctx context.Context, h launcher.Handle, logs bool) (json.RawMessage, error) {
	job, pods, err := l.find(ctx, h, true)
	if err != nil {
		return nil, err
	}
	health, _, _ := Health(job, pods, time.Now())
	type event struct {
		Type, Reason, Message, Object string
		Count                         int32     `json:",omitempty"`
		Last                          time.Time `json:",omitzero"`
	}
	out := struct {
		Server, Namespace, Name string
		Health                  launcher.Health
		Text                    string
		Job                     *batchv1.Job
		Pods                    []*corev1.Pod
		Events                  []event
		Hints                   []string
	}{Server: l.host, Namespace: job.Namespace, Name: job.Name, Health: health, Job: shown(job), Pods: []*corev1.Pod{},
		Events: []event{}}
	kubectl := "kubectl -n " + job.Namespace
	out.Hints = append(out.Hints, kubectl+" describe job "+job.Name)
	about := func(object string, uid types.UID) ([]corev1.Event, error) {
		events, err := l.events(ctx, job.Namespace, string(uid))
		if err != nil {
			out.Events = append(out.Events, event{Type: "Error", Object: object, Message: err.Error()})
		}
		for _, e := range events {
			out.Events = append(out.Events, event{Type: e.Type, Reason: e.Reason, Message: e.Message, Object: object,
				Count: e.Count, Last: when(e)})
		}
		return events, err
	}
	events, _ := about("Job "+job.Name, job.UID) // out.Events contains the error
	var debugs []podDebug
	for _, pod := range pods {
		out.Hints = append(out.Hints, kubectl+" describe pod "+pod.Name, kubectl+" logs "+pod.Name)
		d := podDebug{pod: pod, logs: map[string]string{}, errs: map[string]error{}}
		d.events, d.err = about("Pod "+pod.Name, pod.UID)
		for _, c := range pod.Spec.Containers {
			if logs && hasLog(containerStatus(pod, c.Name)) {
				d.logs[c.Name], d.errs[c.Name] = l.lastLines(ctx, pod, c.Name)
			}
		}
		debugs = append(debugs, d)
		pod = pod.DeepCopy()
		pod.ManagedFields = nil
		hide(&pod.Spec, job.Annotations[secretsNote])
		out.Pods = append(out.Pods, pod)
	}
	out.Text = debugText(job.Name, job, events, debugs)
	return json.MarshalIndent(out, "", "  ")
}

// lastLines returns the last lines of one container, with their times.
func (l *Launcher) lastLines(ctx context.Context, pod *corev1.Pod, container string) (string, error) {
	lines := int64(debugLines)
	text, err := l.client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name,
		&corev1.PodLogOptions{Container: container, TailLines: &lines, Timestamps: true}).DoRaw(ctx)
	return string(text), err
}
