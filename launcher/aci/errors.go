package aci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/slipway-run/slipway/launcher"
)

var (
	// errUnclear: it is unknown whether a write was carried out.
	errUnclear = errors.New("the answer was lost")
	// errBusy: another operation on the group is running.
	errBusy = errors.New("the group is in transition")
	// errImage: a PUT says that the image is inaccessible. It also says so when a registry fails
	// for a moment.
	errImage = errors.New("the image is inaccessible")
	// errRegistry: a PUT says that the registry of the image failed.
	errRegistry = errors.New("the registry failed")
)

// Pauses that the service does not specify.
const (
	busyPause     = 10 * time.Second // between operations on one group
	capacityPause = time.Minute      // for a location without capacity
	fraudPause    = 30 * time.Minute // for a location that suspects fraud
)

// classify returns the meaning of an error of the SDK. HTTP 409 has four meanings, so code and text
// decide, not the status. A refusal concerns the request and fails its run, unless every request
// would meet the same code.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("azure: %w: %w", errUnclear, err)
	}
	var auth *azidentity.AuthenticationFailedError
	var required interface{ NonRetriable() }
	var r *azcore.ResponseError
	switch {
	case errors.As(err, &auth):
		return fmt.Errorf("%w: azure: no token: %w", launcher.ErrDenied, err)
	case !errors.As(err, &r):
		if errors.As(err, &required) { // there is no credential at all
			return fmt.Errorf("%w: azure: %w", launcher.ErrDenied, err)
		}
		return fmt.Errorf("%w: azure: %w: %w", launcher.ErrTransient, errUnclear, err)
	}
	text := message(r)
	say := func(sentinel error) error { return fmt.Errorf("%w: azure: %s: %s", sentinel, r.ErrorCode, text) }
	switch r.ErrorCode {
	case "ContainerGroupQuotaReached":
		return launcher.WithRetryAfter(launcher.WithCause(say(launcher.ErrCapacity), launcher.CauseQuota),
			capacityPause/4)
	case "ServiceUnavailable":
		if strings.Contains(text, "Limit: '0'") {
			return launcher.WithRetryAfter(launcher.WithCause(say(launcher.ErrCapacity), launcher.CauseQuota),
				fraudPause)
		}
		if r.StatusCode == http.StatusConflict || strings.Contains(text, "not available in the location") {
			return launcher.WithRetryAfter(launcher.WithCause(say(launcher.ErrCapacity), launcher.CauseUnschedulable),
				capacityPause)
		}
	case "ContainerGroupTransitioning":
		return launcher.WithRetryAfter(fmt.Errorf("%w: azure: %w: %s", launcher.ErrTransient, errBusy, text), busyPause)
	case "InaccessibleImage":
		return launcher.WithCause(fmt.Errorf("azure: %w: %s", errImage, text), launcher.CauseImagePull)
	case "RegistryErrorResponse":
		return launcher.WithCause(fmt.Errorf("azure: %w: %s", errRegistry, text), launcher.CauseImagePull)
	case "ResourceNotFound", "ContainerLogNotAvailable", "ContainerGroupDeploymentNotReady", "ContainerGroupStopped",
		"ContainerNotFound":
		return say(launcher.ErrNotFound)
	case "AuthorizationFailed", "ResourceGroupNotFound", "ResourceGroupBeingDeleted",
		"ScopeLocked", "SubscriptionNotFound", "InvalidSubscriptionId",
		"ReadOnlyDisabledSubscription", "MissingSubscriptionRegistration":
		return launcher.WithCause(say(launcher.ErrDenied), launcher.CauseAuth)
	case "LinkedAuthorizationFailed": // an identity may not be assigned, or a subnet not joined
		return launcher.WithCause(say(launcher.ErrInvalid), launcher.CauseAuth)
	}
	switch {
	case r.StatusCode == http.StatusTooManyRequests:
		err := launcher.WithCause(say(launcher.ErrTransient), launcher.CauseThrottled)
		if r.RawResponse != nil {
			err = launcher.WithRetryAfter(err, max(time.Second, seconds(r.RawResponse.Header.Get("Retry-After"))))
		}
		return err
	case r.StatusCode == http.StatusUnauthorized:
		return launcher.WithCause(say(launcher.ErrDenied), launcher.CauseAuth)
	case r.StatusCode >= 500, r.StatusCode == http.StatusRequestTimeout:
		return fmt.Errorf("%w: azure: %w: %s %s", launcher.ErrTransient, errUnclear, r.ErrorCode, text)
	case r.StatusCode < 300: // the answer cannot be parsed
		return fmt.Errorf("%w: azure: %w: %w", launcher.ErrTransient, errUnclear, err)
	case r.ErrorCode == "": // not from Azure Resource Manager: a proxy, or a wrong endpoint
		return fmt.Errorf("%w: the answer is not one of Azure's: %s", launcher.ErrDenied, text)
	}
	return say(launcher.ErrInvalid)
}

var messagePattern = regexp.MustCompile(`(?s)"message":\s*"((?:[^"\\]|\\.)*)"`)

// message returns the service's own text. The whole error would show the request's address and
// headers.
func message(r *azcore.ResponseError) string {
	if m := messagePattern.FindStringSubmatch(r.Error()); m != nil {
		return strings.NewReplacer(`\"`, `"`, `\n`, " ").Replace(m[1])
	}
	return fmt.Sprintf("HTTP %d", r.StatusCode)
}
