// Streampeer drives one stream of a CRI server with Kubernetes' own client.
//
//	streampeer exec|attach|ws-exec|ws-attach [-tty] [-stdin] [-no-stderr] [-sizes 80x24,132x43] URL
//	streampeer forward|ws-forward -port N [-count N] URL
//
// Commands: input, outputs and errors are the program's own; its exit code is the command's, or 125 with the
// reason on the error output.
// Forwarded ports: each of `count` connections sends the standard input, ends its half and reads to the end; the
// answers are written one after the other.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

const failed = 125

type sizes struct{ left []remotecommand.TerminalSize }

func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.left) == 0 {
		return nil
	}
	next := s.left[0]
	s.left = s.left[1:]
	return &next
}

func main() {
	mode := os.Args[1]
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	tty := flags.Bool("tty", false, "")
	stdin := flags.Bool("stdin", false, "")
	noStderr := flags.Bool("no-stderr", false, "")
	sized := flags.String("sizes", "", "")
	port := flags.Int("port", 0, "")
	count := flags.Int("count", 1, "")
	_ = flags.Parse(os.Args[2:])
	target, err := url.Parse(flags.Arg(0))
	if err == nil && strings.HasSuffix(mode, "forward") {
		err = forward(mode, target, *port, *count)
	} else if err == nil {
		options := remotecommand.StreamOptions{Stdout: os.Stdout, Tty: *tty}
		if *stdin {
			options.Stdin = os.Stdin
		}
		if !*tty && !*noStderr {
			options.Stderr = os.Stderr
		}
		if *tty {
			options.TerminalSizeQueue = parse(*sized)
		}
		err = command(mode, target, options)
	}
	var exit utilexec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitStatus())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(failed)
	}
}

func parse(text string) *sizes {
	found := &sizes{}
	for _, item := range strings.Split(text, ",") {
		var size remotecommand.TerminalSize
		if _, err := fmt.Sscanf(item, "%dx%d", &size.Width, &size.Height); err == nil {
			found.left = append(found.left, size)
		}
	}
	return found
}

func command(mode string, target *url.URL, options remotecommand.StreamOptions) error {
	var executor remotecommand.Executor
	var err error
	if strings.HasPrefix(mode, "ws-") {
		executor, err = remotecommand.NewWebSocketExecutor(&restclient.Config{}, "GET", target.String())
	} else {
		executor, err = remotecommand.NewSPDYExecutor(&restclient.Config{}, "POST", target)
	}
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), options)
}

func forward(mode string, target *url.URL, port, count int) error {
	dialer, err := dial(mode, target)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(
		dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case err := <-done:
		return err
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	answers := make([]bytes.Buffer, count)
	var wait sync.WaitGroup
	for index := range answers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			if err := talk(int(ports[0].Local), input, &answers[index]); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
	wait.Wait()
	for index := range answers {
		_, _ = os.Stdout.Write(answers[index].Bytes())
	}
	// What the library logs of a refusal comes a moment after the connection's end.
	time.Sleep(100 * time.Millisecond)
	close(stop)
	return nil
}

func talk(port int, input []byte, answer *bytes.Buffer) error {
	connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, _ = connection.Write(input)
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(answer, connection)
	return err
}

func dial(mode string, target *url.URL) (httpstream.Dialer, error) {
	if strings.HasPrefix(mode, "ws-") {
		return portforward.NewSPDYOverWebsocketDialer(target, &restclient.Config{})
	}
	transport, upgrader, err := spdy.RoundTripperFor(&restclient.Config{})
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", target), nil
}
