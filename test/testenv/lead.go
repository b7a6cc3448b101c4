package testenv

import (
	"regexp"
	"strings"
	"testing"
)

var late = regexp.MustCompile(`msg="leadership lost; standing by" err="the lease was not renewed in time`)

// LeadLasts checks, by the log of a daemon that alone leads its instance, that the lead never ended
// but by a late renewal: each time it says that it leads is the first one, follows settings read
// again, or follows a late renewal, which a busy machine may cause. It gives the number of leads
// that ended so.
func LeadLasts(t *testing.T, log string) (lost int) {
	t.Helper()
	lost = len(late.FindAllString(log, -1))
	leads := strings.Count(log, "msg=leading")
	most := 1 + lost + strings.Count(log, "the reloaded settings are in force")
	if n := strings.Count(log, "leadership lost"); n != lost || leads > most {
		t.Errorf("the daemon lost its lead %d times, %d of them by a late renewal, and led %d times, want at most "+
			"%d:\n%s",
			n, lost, leads, most, log)
	}
	return lost
}
