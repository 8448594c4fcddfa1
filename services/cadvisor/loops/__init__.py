"""How cAdvisor looks, again and again."""
