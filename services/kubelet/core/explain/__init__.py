"""Say why a pod is not Ready, since when, and what is tried next. Pure.

From what the kubelet knows already: nothing is asked of the runtime, so that there is
an answer while it is down. Causes come in the order in which a person would mend them:
the node, then the pod, then its containers.
"""

from services.kubelet.core.explain.cause import Cause, Doing, Scope
from services.kubelet.core.explain.facts import Explanation, Facts, Failure, Verdict, Work
from services.kubelet.core.explain.pod import explain

__all__ = ["Cause", "Doing", "Explanation", "Facts", "Failure", "Scope", "Verdict", "Work", "explain"]
