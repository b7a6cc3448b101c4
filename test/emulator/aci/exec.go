package aci

import (
	"context"
	"crypto/rand"
	"net/http"
	"slices"
	"strings"

	"github.com/coder/websocket"

	arm "github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/containerinstance/armcontainerinstance/v2"
)

// session is a requested command that waits for its web socket.
type session struct {
	container Container
	command   []string
	password  string
}

func (e *Emulator) exec(r *http.Request, c call, g *group, body []byte) answer {
	i := slices.IndexFunc(g.boxes, func(b *box) bool { return b.name == c.container })
	if i < 0 || g.boxes[i].c == nil || val(val(g.boxes[i].current).State) != "Running" {
		return e.notRunning(g)
	}
	command := []string{"/bin/sh"}
	if c.op == "exec" {
		var asked arm.ContainerExecRequest
		if a := decode(body, &asked); a != nil {
			return *a
		}
		command = strings.Fields(val(asked.Command))
	}
	if len(command) == 0 {
		return wrong(400, "InvalidRequestContent", "The command is empty.")
	}
	id, password := rand.Text(), rand.Text()
	e.execs[id] = session{g.boxes[i].c, command, password}
	uri := "ws" + strings.TrimPrefix(base(r), "http") + "/_emulator/exec/" + id
	return answer{status: 200, body: arm.ContainerExecResponse{WebSocketURI: &uri, Password: &password}}
}

// socket connects a web socket with the command that it was made for. Azure's clients send the
// password as the first message. It may also be in the header Authorization.
func (e *Emulator) socket(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	id := strings.TrimPrefix(r.URL.Path, "/_emulator/exec/")
	s, ok := e.execs[id]
	delete(e.execs, id)
	e.mu.Unlock()
	if !ok {
		http.Error(w, "no such session", http.StatusNotFound)
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // only the password matters
	if err != nil {
		return
	}
	defer func() { _ = ws.CloseNow() }()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if r.Header.Get("Authorization") != s.password {
		_, first, err := ws.Read(ctx)
		if err != nil || string(first) != s.password {
			_ = ws.Close(websocket.StatusPolicyViolation, "wrong password")
			return
		}
	}
	conn := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	if err := s.container.Exec(ctx, s.command, conn, conn); err != nil {
		_, _ = conn.Write([]byte(err.Error() + "\n"))
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
}
