package launcher

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// HostOf returns the name of the host whose local disk holds folder, for [Local]. The name is a
// random text in the folder's file "host"; HostOf makes the file if it does not exist. Processes
// that call it at the same time all get the same name. A copy of the folder on another host must
// leave the file out.
func HostOf(folder string) (string, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	file := filepath.Join(folder, "host")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeHost(folder, file); err != nil {
			return "", err
		}
		text, err = os.ReadFile(file)
	}
	return strings.TrimSpace(string(text)), err
}

// makeHost writes a complete file and then links it to its name. So no process reads half a name,
// and the first writer wins.
func makeHost(folder, file string) error {
	f, err := os.CreateTemp(folder, "host-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(uuid.NewString()[:13] + "\n")
	err = errors.Join(err, f.Close())
	if err == nil {
		if err = os.Link(f.Name(), file); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	return errors.Join(err, os.Remove(f.Name()))
}
