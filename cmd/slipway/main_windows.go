package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "slipway: Windows is not supported; run it on Linux or macOS, or in WSL")
	os.Exit(1)
}
