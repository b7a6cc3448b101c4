package queue

import (
	"cmp"
	"time"
)

// before reports whether a run goes before another one.
func (it *item) before(o *item) bool {
	return cmp.Or(o.priority.Cmp(it.priority), cmp.Compare(it.run.Row, o.run.Row)) < 0
}

// Len, Less, Swap, Push and Pop implement [heap.Interface].
func (l *lane) Len() int           { return len(l.items) }
func (l *lane) Less(i, j int) bool { return l.items[i].before(l.items[j]) }
func (l *lane) Swap(i, j int) {
	l.items[i], l.items[j] = l.items[j], l.items[i]
	l.items[i].at, l.items[j].at = i, j
}

func (l *lane) Push(it any) {
	l.items = append(l.items, it.(*item)) //nolint:errcheck // it holds nothing else
	l.items[len(l.items)-1].at = len(l.items) - 1
}

func (l *lane) Pop() any {
	last := len(l.items) - 1
	it := l.items[last]
	l.items[last] = nil
	l.items = l.items[:last]
	return it
}

// laneHeap has the lane with the first run first.
type laneHeap []*lane

// Len, Less, Swap, Push and Pop implement [heap.Interface].
func (h laneHeap) Len() int           { return len(h) }
func (h laneHeap) Less(i, j int) bool { return h[i].items[0].before(h[j].items[0]) }
func (h laneHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }

func (h *laneHeap) Push(l any) {
	*h = append(*h, l.(*lane)) //nolint:errcheck // it holds nothing else
	(*h)[len(*h)-1].at = len(*h) - 1
}

func (h *laneHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last] = nil
	*h, l.at = (*h)[:last], -1
	return l
}

// timer is a time at which a run is to be looked at.
type timer struct {
	at  time.Time
	run string
}

// timerHeap has the earliest timer first.
type timerHeap []timer

// Len, Less, Swap, Push and Pop implement [heap.Interface].
func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(t any)        { *h = append(*h, t.(timer)) } //nolint:errcheck // it holds nothing else

func (h *timerHeap) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	*h = (*h)[:last]
	return t
}
