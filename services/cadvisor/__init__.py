"""cAdvisor: what every container uses, sampled once a second."""
