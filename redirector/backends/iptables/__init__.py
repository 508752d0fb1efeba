"""The iptables backends: what a Program is in rules of iptables (`rules`), the text between (`save`), the commands."""
