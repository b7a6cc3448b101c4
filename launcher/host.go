package launcher

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// HostOf names the host of a folder on a local disk, for [Local]: a random text that is kept in the folder's file "host", made if
// there is none yet. Of several processes that call it at once, all get the same. A copy of the folder on another host must
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

// makeHost writes the file whole and links it, so that nobody reads half of it and the first one wins.
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
